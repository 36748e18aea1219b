"""What Hugging Face left in a folder, opened: offline, nothing of it fetched or unpickled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medbert.schema import InputError
from medbert.text.encoders.pieces import Frame

_LONGEST = 512  # pieces, of an encoder that names no limit


def library() -> Any:
    """transformers, which then says nothing by itself."""
    try:
        import transformers
    except ImportError as error:
        raise InputError("this needs transformers: pip install 'medbert[text]'") from error
    transformers.logging.set_verbosity_error()  # what is missing is said by us
    transformers.logging.disable_progress_bar()
    return transformers


def opened(folder: str | Path, kind: str, **more: Any) -> tuple[Any, Any, list[str]]:
    """A model of ``kind`` (as transformers calls it: AutoModel), its tokenizer, and the names of
    the weights that the folder does not have.

    Raises InputError: there is none to read.
    """
    config_of(folder)
    how = {"use_safetensors": True, "output_loading_info": True, **more}
    model, told = _read(folder, kind, "model", **how)
    return model, tokenizer_of(folder), sorted(told["missing_keys"])


def config_of(folder: str | Path) -> Any:
    if not (Path(folder) / "config.json").is_file():
        raise InputError(f"{folder}: no config.json; give the folder of a Hugging Face model")
    return _read(folder, "AutoConfig", "model")


def tokenizer_of(folder: str | Path) -> Any:
    """The fast tokenizer of a folder. Raises InputError: there is none."""
    made = _read(folder, "AutoTokenizer", "tokenizer")
    if not made.is_fast:
        raise InputError(f"{folder}: a fast tokenizer (tokenizer.json) is needed")
    return made


def _read(folder: str | Path, kind: str, what: str, **how: Any) -> Any:
    maker = getattr(library(), kind)
    try:
        return maker.from_pretrained(str(folder), local_files_only=True, **how)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{folder}: no {what} of transformers to read here ({reason})") from error


def longest(config: Any, tokenizer: Any) -> int:
    """In pieces. RoBERTa counts its positions from behind that of padding."""
    positions = getattr(config, "max_position_embeddings", None) or _LONGEST
    if "roberta" in str(config.model_type):
        positions -= (config.pad_token_id or 0) + 1
    return min(positions, tokenizer.model_max_length)


def place(device: str) -> torch.device:
    cuda = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(cuda if device == "auto" else device)


def cut(text: str, tokenizer: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pieces of a text, without special ones: their ids, and where each starts and ends."""
    made = tokenizer(
        text,
        add_special_tokens=False,
        split_special_tokens=True,  # "[SEP]" in a note is text
        return_offsets_mapping=True,
        verbose=False,
    )
    start_P, end_P = np.array(made["offset_mapping"], np.int64).reshape(-1, 2).T
    return np.array(made["input_ids"], np.int64), start_P, end_P


def padded(
    pieces: Sequence[Sequence[int]], tokenizer: Any, frame: Frame
) -> tuple[Tensor, Tensor, Tensor]:
    """Pieces of several texts, each in its frame, (B, L): their ids, which places are no padding
    (int64), and which are the text's own."""
    rows = [torch.tensor([*frame.before, *own, *frame.after]) for own in pieces]
    pad = tokenizer.pad_token_id or 0
    ids_BL = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
    place_L, start = torch.arange(ids_BL.shape[1]), len(frame.before)
    end_B1 = torch.tensor([[len(own)] for own in pieces]) + start
    own_BL = (place_L >= start) & (place_L < end_B1)
    return ids_BL, (place_L < end_B1 + len(frame.after)).long(), own_BL


def fine_tuned(
    weights: Sequence[Tensor],
    loss_of: Callable[[list[int]], Tensor],
    *,
    n: int,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float = 0.01,
    warmup: float = 0.1,
) -> Iterator[float]:
    """Trains the ``weights`` on ``n`` examples, of which ``loss_of`` takes the numbers; yields the
    mean loss of each epoch. The rate rises over the share ``warmup`` of the steps, then falls
    linearly to nothing."""
    optimizer = torch.optim.AdamW(weights, lr=learning_rate, weight_decay=weight_decay)
    steps = epochs * -(-n // batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / (warmup * steps + 1), 1 - step / steps)
    )
    for _ in range(epochs):
        order, losses = torch.randperm(n).tolist(), []
        for i in range(0, n, batch_size):
            loss = loss_of(order[i : i + batch_size])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
        yield float(np.mean(losses))
