"""Progress of a command: a bar with rate and time left in a terminal, sparse plain lines elsewhere, both on stderr."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from pod_job.terminal import SafeConsole

T = TypeVar("T")

PLAIN_EVERY_S = 10.0

Progress = Callable[[Iterable[T], int, str], Iterable[T]]
"""Yields the items of an iterable unchanged and may show how many are done: `progress(items, total, "batches")`."""


def no_progress(items: Iterable[T], total: int, unit: str) -> Iterable[T]:
    """Returns `items`; shows nothing."""
    return items


def progress_bar(items: Iterable[T], total: int, unit: str) -> Iterator[T]:
    """Yields `items` and shows on stderr how many of `total` are done; `unit` is their name in the plural."""
    console = SafeConsole(stderr=True)
    return on_terminal(items, total, unit, console) if console.is_terminal else in_lines(items, total, unit, console)


def on_terminal(items: Iterable[T], total: int, unit: str, console: Console) -> Iterator[T]:
    columns = (TextColumn("{task.description:<12}"), BarColumn(40), MofNCompleteColumn())
    rate, left = TextColumn("{task.fields[rate]}"), TimeRemainingColumn(compact=True)
    started = time.monotonic()
    # Transient: the bar is gone when the command prints its results.
    with RichProgress(*columns, rate, left, console=console, transient=True) as bar:
        task = bar.add_task(unit, total=total, rate="")
        for done, item in enumerate(items, 1):
            yield item
            bar.update(task, completed=done, rate=f"{items_per_s(done, started):,.0f}/s")


def in_lines(items: Iterable[T], total: int, unit: str, console: Console) -> Iterator[T]:
    started = last_line = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - last_line >= PLAIN_EVERY_S:
            last_line, rate = now, items_per_s(done, started)
            left = f", {(total - done) / rate:,.0f} s left"
            console.print(f"{now - started:6.1f} s  {unit} {done:,}/{total:,}, {rate:,.1f}/s{left}", highlight=False)


def items_per_s(done: int, started: float) -> float:
    return done / max(time.monotonic() - started, 1e-9)
