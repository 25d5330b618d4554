"""Clock of the launcher: all that waits or measures a wait asks it, so that a rehearsal can run on simulated time."""

import time


def monotonic() -> float:
    return time.monotonic()


def now() -> float:
    """Returns the Unix time."""
    return time.time()


def sleep(seconds: float) -> None:
    time.sleep(seconds)
