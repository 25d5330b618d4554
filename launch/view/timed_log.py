"""Prints one timed line for each step of a long verb."""

import time
from collections.abc import Callable

from rich.console import Console

Log = Callable[[str], None]


def timed_log(began: float | None = None) -> Log:
    """Prints what goes on to stderr, each line with the seconds since `began`, a moment of time.monotonic(); or now."""
    screen = Console(stderr=True)
    origin = time.monotonic() if began is None else began

    def log(text: str) -> None:
        screen.print(f"{time.monotonic() - origin:6.1f} s  {text}", highlight=False, markup=False, soft_wrap=True)

    return log
