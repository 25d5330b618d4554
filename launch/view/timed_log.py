"""Prints one timed line for each step of a long verb."""

from collections.abc import Callable

from launch import clock
from pod_job.terminal import SafeConsole

Log = Callable[[str], None]


def timed_log(began: float | None = None) -> Log:
    """Returns a log that prints to stderr, with the seconds since `began` (of clock.monotonic()) or since now."""
    screen = SafeConsole(stderr=True)
    origin = clock.monotonic() if began is None else began

    def log(text: str) -> None:
        screen.print(f"{clock.monotonic() - origin:6.1f} s  {text}", highlight=False, markup=False, soft_wrap=True)

    return log
