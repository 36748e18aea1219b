"""Progress of long work: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from typing import Any

log = logging.getLogger(__name__)

_LINE_EVERY_S = 30.0


def show(what: Any) -> None:
    """In the terminal; a notebook shows the same, which the verb returns, by itself."""
    from rich.console import Console

    console = Console()
    if not console.is_jupyter:
        console.print(what)


def follow(
    items: Iterable[Any],
    what: str,
    total: int,
    *,
    unit: str = "events",
    size: Callable[[Any], int] = int,
) -> Iterator[Any]:
    """Yields the items, and shows the rate and the time left of what is done with them.

    ``size``: how many events an item has; else it is that number, of a job that has finished. Jobs
    that an interrupted run had finished pass at once, so the first rates can be too high.
    """
    begun = said = time.monotonic()
    events, bar = 0, _bar() if sys.stderr.isatty() else None
    with bar or nullcontext():
        task = bar.add_task(what, total=total, rate="") if bar else None
        for n_jobs, item in enumerate(items, start=1):
            yield item
            events += size(item)
            now = time.monotonic()
            rate = events / max(now - begun, 1e-9)
            if bar:
                bar.update(task, advance=1, rate=f"{events:,} {unit}, {rate:,.0f}/s")
            elif now - said > _LINE_EVERY_S or n_jobs == total:
                left = (now - begun) / n_jobs * (total - n_jobs)
                text = "%s: %d of %d jobs, %s %s, %s a second, %.0f s left"
                log.info(text, what, n_jobs, total, f"{events:,}", unit, f"{rate:,.0f}", left)
                said = now


def _bar() -> Any:
    from rich import progress as rich
    from rich.console import Console

    columns = (
        rich.TextColumn("{task.description}"),
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        rich.TextColumn("{task.fields[rate]}"),
        rich.TimeElapsedColumn(),
        rich.TimeRemainingColumn(),
    )
    return rich.Progress(*columns, console=Console(stderr=True))
