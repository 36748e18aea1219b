"""Notes in parts: each is worked on in some process and written whole or not at all, so that a
killed run goes on where it was."""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial, wraps
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

from medbert.commands.output.progress import follow
from medbert.schema import InputError, Unfinished
from medbert.text.notes import Note

_NOTES, _CHARACTERS = 500, 200_000  # of a part: whichever is reached first

Row = dict[str, Any]
Work = Callable[..., Row]  # a function of a note, and of what goes with it
Submit = Callable[..., Callable[[], Any]]  # a function and its arguments -> what gives the result

_here: list[Any] = []  # what ``work`` needs in this process, made once


def parts(notes: Iterable[Note]) -> Iterator[list[Note]]:
    """The same parts of the same notes, every time."""
    part: list[Note] = []
    characters = 0
    for note in notes:
        part.append(note)
        characters += len(note.text)
        if len(part) >= _NOTES or characters >= _CHARACTERS:
            yield part
            part, characters = [], 0
    if part:
        yield part


def rows(stage: Path) -> Iterator[Row]:
    """What was written of each note, in the order of the notes."""
    for file in sorted(stage.glob("*.jsonl")):
        with file.open(encoding="utf-8") as lines:
            yield from map(json.loads, lines)


@contextmanager
def processes(workers: int, needed: Any) -> Iterator[Submit]:
    """Each has ``needed``; where one worker is wanted, it is this process."""
    if workers == 1:
        _begin(needed)
        yield partial
        return
    try:
        with ProcessPoolExecutor(workers, get_context("spawn"), _begin, (needed,)) as pool:
            yield lambda *call: pool.submit(*call).result
    except BrokenProcessPool:
        raise Unfinished(
            "a process was ended from outside (out of memory?); what is done is kept: repeat the "
            "command, perhaps with fewer workers="
        ) from None


def _begin(needed: Any) -> None:
    _here[:] = [needed]
    if (parent := parent_process()) is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(1)


def _end_with(parent: Any) -> None:
    """A command that is killed leaves no process behind."""
    parent.join()
    os._exit(1)


def run(
    submit: Submit,
    work: Work,
    jobs: Iterable[tuple[list[Note], Iterable[tuple[Any, ...]]]],
    stage: Path,
    *,
    n_parts: int,
    ahead: int,
) -> None:
    """Writes ``work(needed, note, *beside)`` of every note of every part that ``stage`` does not
    hold yet. ``jobs``: notes, and what goes beside each; ``ahead`` of them wait in memory.
    """
    stage.mkdir(parents=True, exist_ok=True)

    def done() -> Iterator[int]:
        waiting: deque[Callable[[], int]] = deque()
        for number, (notes, beside) in enumerate(jobs):
            file = stage / f"{number:07}.jsonl"
            if file.exists():
                waiting.append(partial(len, notes))
            else:
                waiting.append(submit(_part, file, work, notes, [*beside]))
            if len(waiting) > ahead:
                yield waiting.popleft()()
        yield from (result() for result in waiting)

    for _ in follow(done(), stage.name, n_parts, unit="notes"):
        pass


def _part(file: Path, work: Work, notes: list[Note], beside: list[tuple[Any, ...]]) -> int:
    made = (_safely(work, note, *more) for note, more in zip(notes, beside, strict=True))
    partial_file = file.with_suffix(".part")
    with partial_file.open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in made)
    partial_file.replace(file)
    return len(notes)


def _safely(work: Work, note: Note, *beside: Any) -> Row:
    """A note that breaks ``work`` stops no other."""
    try:
        return work(_here[0], note, *beside)
    except InputError:
        raise
    except Exception as error:
        return {"failed": _without_message(error)}


def _without_message(error: Exception) -> str:
    """What was raised and where; the message may quote a text."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}"


def withheld(verb: Callable[..., Any]) -> Callable[..., Any]:
    """The verb, whose unforeseen errors are raised without their messages."""

    @wraps(verb)
    def quiet(**arguments: Any) -> Any:
        try:
            return verb(**arguments)
        except (InputError, Unfinished):
            raise
        except Exception as error:
            said = f"{_without_message(error)}; its message is withheld, for it may quote a text"
            raise RuntimeError(said) from None

    return quiet
