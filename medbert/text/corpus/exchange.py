"""What sites may send each other of their corpora: counts and keyed signatures, never text.

    exchange/manifest.json       the corpus' counts, small ones withheld
    exchange/signatures.parquet  of each document: site, kind, words, its keyed name, its signature

Signatures and names are made with a secret that the sites share, so that nobody without it can try
out what a document may hold. Who has it can test a guess of a whole document: keep it among those
who compare.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import parquet

from medbert.schema import InputError
from medbert.text.corpus.duplicates import VALUES, near_copies

FOLDER = "exchange"
SIGNATURES = pa.schema(
    [
        pa.field("document", pa.binary(16), nullable=False),
        pa.field("site", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("signature", pa.binary(4 * VALUES), nullable=False),
    ]
)
AWAY = pa.schema([pa.field("site", pa.string()), SIGNATURES.field("document")])

_FEW = 5  # documents or patients; a smaller count is withheld
_SHARED = ("documents", "words", "patients", "splits", "groups", "dropped", "sha256")


def name_of(sha256: str, secret: bytes) -> bytes:
    """A document's name, which tells nothing without the secret."""
    return hmac.digest(secret, b"document" + sha256.encode(), "sha256")[:16]


def check_of(secret: bytes) -> str:
    """Whether two secrets are the same one can be seen from it."""
    return hmac.digest(secret, b"the key of an exchange", "sha256")[:8].hex()


def shared(manifest: Mapping[str, Any], secret: bytes) -> dict[str, Any]:
    """What of a manifest leaves the site."""

    def withheld(counts: Any) -> Any:
        if isinstance(counts, list):
            return [withheld(row) for row in counts]
        if not isinstance(counts, dict):
            return counts
        few = any(0 < counts.get(name, _FEW) < _FEW for name in ("documents", "patients"))
        hidden = ("documents", "patients", "words") if few else ()
        return {k: None if k in hidden else withheld(v) for k, v in counts.items()}

    return {name: withheld(manifest[name]) for name in _SHARED} | {"key": check_of(secret)}


def signed(about: pa.Table, signatures_NV: NDArray[np.uint32], secret: bytes) -> pa.Table:
    """SIGNATURES of the documents ``about`` (site, kind, sha256)."""
    raw = np.ascontiguousarray(signatures_NV, "<u4").tobytes()
    size = 4 * VALUES
    made = {
        "document": [name_of(sha, secret) for sha in about["sha256"].to_pylist()],
        "site": about["site"],
        "kind": about["kind"],
        "signature": [raw[at : at + size] for at in range(0, len(raw), size)],
    }
    return pa.table(made, schema=SIGNATURES)


class Site(NamedTuple):
    """What one of the sites sent."""

    folder: Path
    manifest: dict[str, Any]
    table: pa.Table

    @classmethod
    def read(cls, folder: str) -> Site:
        """Raises InputError: it is no folder ``exchange/``."""
        place = Path(folder)
        place = place / FOLDER if (place / FOLDER).is_dir() else place
        try:
            manifest = json.loads((place / "manifest.json").read_text(encoding="utf-8"))
            table = parquet.read_table(place / "signatures.parquet").cast(SIGNATURES)
            return cls(place, {**manifest, "key": manifest["key"]}, table)
        except (OSError, ValueError, KeyError):
            raise InputError(
                f"{folder}: no exchange/ with manifest.json and signatures.parquet; medbert corpus "
                "key=... makes one"
            ) from None


def overlaps(sites: Sequence[Site], *, threshold: float) -> tuple[list[dict[str, Any]], pa.Table]:
    """How many documents of one site are near copies of another's, and which are to leave (AWAY):
    those of the site that is named later.

    Raises InputError: their keys differ.
    """
    if len({site.manifest["key"] for site in sites}) > 1:
        raise InputError("in: made with different keys; the sites must share one secret")
    names = [site.folder.parent.name or str(i) for i, site in enumerate(sites)]
    tables = [site.table for site in sites]
    whole, from_N = pa.concat_tables(tables), np.repeat(np.arange(len(sites)), [*map(len, tables)])
    raw = b"".join(whole["signature"].to_pylist())
    of_N = near_copies(np.frombuffer(raw, "<u4").reshape(-1, VALUES), threshold=threshold)
    copies_N = np.flatnonzero(of_N >= 0)
    copies_N = copies_N[from_N[copies_N] != from_N[of_N[copies_N]]]
    pairs, counts = np.unique(
        np.stack([from_N[of_N[copies_N]], from_N[copies_N]], 1), axis=0, return_counts=True
    )
    told = [
        {"kept_at": names[a], "leaves": names[b], "documents": int(n)}
        for (a, b), n in zip(pairs.tolist(), counts, strict=True)
    ]
    leaving = whole.take(copies_N)
    where = [names[i] for i in from_N[copies_N]]
    return told, pa.table({"site": where, "document": leaving["document"]}, schema=AWAY)


class Away:
    """Documents that another site keeps."""

    def __init__(self, names: frozenset[bytes], secret: bytes) -> None:
        self.names, self.secret = names, secret

    @classmethod
    def read(cls, folder: str | None, secret: bytes) -> Away | None:
        if folder is None:
            return None
        if not secret:
            raise InputError("without: needs the key of the exchange: key=PATH or key=env:NAME")
        try:
            table = parquet.read_table(Path(folder) / "leaving.parquet")
            return cls(frozenset(table["document"].to_pylist()), secret)
        except (OSError, KeyError, pa.ArrowException):
            raise InputError(
                f"without={folder}: is that what medbert corpus compare made?"
            ) from None

    def of(self, sha256s: Sequence[str]) -> NDArray[np.bool_]:
        return np.array([name_of(sha, self.secret) in self.names for sha in sha256s], bool)
