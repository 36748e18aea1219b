"""Reads a TensorFlow checkpoint without TensorFlow, and without running anything that is in it.

``NAME.index`` is a table of LevelDB (google/leveldb, doc/table_format.md; written without
compression) from the names of tensors to records that say where each lies
(tensorflow/core/protobuf/tensor_bundle.proto); ``NAME.data-00000-of-00001`` is their bytes, end to
end. Checksums are not looked at; sizes are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from struct import error as struct_error
from struct import unpack_from
from typing import Any

import numpy as np

from medbert.schema import InputError

_MAGIC = 0xDB4775248B80FB57
_FOOTER, _FLOAT, _LITTLE = 48, 1, 0


def read_tensors(index: str | Path, wanted: Callable[[str], bool]) -> dict[str, np.ndarray]:
    """The float32 tensors whose names are ``wanted``.

    Raises InputError, in one line, if a file is missing, truncated or of another kind.
    """
    path = Path(index)
    cure = "name the .index file of a TensorFlow checkpoint, beside its .data-... files"
    try:
        shards, entries = _entries(path.read_bytes())
        return {n: _tensor(path, shards, record) for n, record in entries.items() if wanted(n)}
    except OSError as error:
        raise InputError(f"{error.filename or path}: {error.strerror}; {cure}") from error
    except (ArithmeticError, LookupError, TypeError, ValueError, struct_error) as error:
        raise InputError(f"{path}: not a checkpoint that can be read ({error}); {cure}") from error


def _entries(data: bytes) -> tuple[int, dict[str, bytes]]:
    """The number of data files, and the record of each tensor."""
    if len(data) < _FOOTER or unpack_from("<Q", data, len(data) - 8)[0] != _MAGIC:
        raise ValueError("truncated, or no index")
    at = len(data) - _FOOTER
    for _ in range(2):  # the place of the statistics, which are passed over
        _, at = _varint(data, at)
    found: dict[bytes, bytes] = {}
    for _, handle in _block(data, at):
        found.update(_block(data, 0, handle))
    header = dict(_fields(found.pop(b"")))
    if header.get(2, _LITTLE) != _LITTLE:
        raise ValueError("big-endian")
    return int(header[1]), {name.decode(): record for name, record in found.items()}


def _block(data: bytes, at: int, handle: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of the block whose place stands at ``at``, or in ``handle``."""
    start, after = _varint(handle or data, at)
    size, _ = _varint(handle or data, after)
    if data[start + size] != 0:  # IndexError: it ends behind the file
        raise ValueError("compressed")
    block = data[start : start + size]
    end = size - 4 * (1 + unpack_from("<I", block, size - 4)[0])
    key, at = b"", 0
    while at < end:
        shared, at = _varint(block, at)
        own, at = _varint(block, at)
        length, at = _varint(block, at)
        key = key[:shared] + block[at : at + own]
        yield key, block[at + own : at + own + length]
        at += own + length


def _tensor(index: Path, shards: int, record: bytes) -> np.ndarray:
    """What lies where a BundleEntryProto says."""
    fields = dict(_fields(record))
    if fields[1] != _FLOAT or 7 in fields:
        raise ValueError("a tensor is no float32, or in slices")
    sizes = (dict(_fields(part)) for number, part in _fields(fields.get(2, b"")) if number == 2)
    shape = tuple(int(dimension.get(1, 0)) for dimension in sizes)
    shard, offset, size = (int(fields.get(number, 0)) for number in (3, 4, 5))
    if size != 4 * np.prod(shape, dtype=np.int64):
        raise ValueError("a size that is not that of its shape")
    file = index.with_name(f"{index.stem}.data-{shard:05d}-of-{shards:05d}")
    if file.stat().st_size < offset + size:
        raise ValueError(f"{file.name} is truncated")
    with file.open("rb") as stream:
        stream.seek(offset)
        return np.frombuffer(stream.read(size), "<f4").reshape(shape)


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Number and value (an int, or bytes) of each field of a protocol buffer."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        if (kind := tag & 7) == 0:
            value, at = _varint(message, at)
            yield tag >> 3, value
        elif kind in (1, 2, 5):
            length, at = _varint(message, at) if kind == 2 else (8 if kind == 1 else 4, at)
            yield tag >> 3, message[at : at + length]
            at += length
        else:
            raise ValueError(f"a field of kind {kind}")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, the lowest first, and where the next one begins."""
    value = 0
    for place in range(10):
        value |= (data[at + place] & 127) << 7 * place
        if data[at + place] < 128:
            return value, at + place + 1
    raise ValueError("a number without end")
