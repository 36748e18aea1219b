"""Progress of long work: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

log = logging.getLogger(__name__)

_LINE_EVERY_S = 30.0


def show(what: Any) -> None:
    """In the terminal; a notebook shows the same, which the verb returns, by itself."""
    from rich.console import Console

    console = Console()
    if not console.is_jupyter:
        console.print(what)


def follow(done: Iterable[int], what: str, total: int, *, unit: str = "events") -> Iterator[int]:
    """Yields what ``done`` yields, the events of each finished job, and shows rate and time left.

    Jobs that an interrupted run had finished pass at once, so the first rates can be too high.
    """
    if sys.stderr.isatty():
        yield from _bar(done, what, total, unit)
        return
    begun = said = time.monotonic()
    events = 0
    for n_jobs, n in enumerate(done, start=1):
        events += n
        now = time.monotonic()
        if now - said > _LINE_EVERY_S or n_jobs == total:
            rate = events / max(now - begun, 1e-9)
            left = (now - begun) / n_jobs * (total - n_jobs)
            text = "%s: %d of %d jobs, %s %s, %s a second, %.0f s left"
            log.info(text, what, n_jobs, total, f"{events:,}", unit, f"{rate:,.0f}", left)
            said = now
        yield n


def _bar(done: Iterable[int], what: str, total: int, unit: str) -> Iterator[int]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(what, total=total, rate="")
        begun, events = time.monotonic(), 0
        for n in done:
            events += n
            rate = events / max(time.monotonic() - begun, 1e-9)
            progress.update(task, advance=1, rate=f"{events:,} {unit}, {rate:,.0f}/s")
            yield n
