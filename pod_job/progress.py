"""Progress of a command: a bar with rate and time left in a terminal, sparse plain lines elsewhere, both on stderr."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

PLAIN_EVERY_S = 10.0

Watch = Callable[[Iterable[Any], int, str], Iterable[Any]]
"""Passes items through, of which there are so many and which are called so: `watch(items, total, "batches")`."""


def unwatched(items: Iterable[Any], total: int, what: str) -> Iterable[Any]:
    """The same items; nothing is shown."""
    return items


def watched(items: Iterable[Any], total: int, what: str) -> Iterator[Any]:
    """The same items, counted on stderr while they pass."""
    console = Console(stderr=True)
    return on_terminal(items, total, what, console) if console.is_terminal else in_lines(items, total, what, console)


def on_terminal(items: Iterable[Any], total: int, what: str, console: Console) -> Iterator[Any]:
    columns = (TextColumn("{task.description:<12}"), BarColumn(40), MofNCompleteColumn())
    rate, left = TextColumn("{task.fields[rate]}"), TimeRemainingColumn(compact=True)
    started = time.monotonic()
    # Gone when it is full: what the command has to say comes after it.
    with Progress(*columns, rate, left, console=console, transient=True) as progress:
        task = progress.add_task(what, total=total, rate="")
        for done, item in enumerate(items, 1):
            yield item
            progress.update(task, completed=done, rate=f"{pace(done, started):,.0f}/s")


def in_lines(items: Iterable[Any], total: int, what: str, console: Console) -> Iterator[Any]:
    started = spoke = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - spoke >= PLAIN_EVERY_S:
            spoke, rate = now, pace(done, started)
            left = f", {(total - done) / rate:,.0f} s left"
            console.print(f"{now - started:6.1f} s  {what} {done:,}/{total:,}, {rate:,.1f}/s{left}", highlight=False)


def pace(done: int, started: float) -> float:
    return done / max(time.monotonic() - started, 1e-9)
