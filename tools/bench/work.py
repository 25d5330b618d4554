"""Work of one variant, and the time and memory that a process has used."""

import contextlib
import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


class Metrics(dict[str, float]):
    """Metrics that a run measures itself: they are added to those of its process, or replace them."""


@dataclass(frozen=True)
class Work:
    """One way to do the work of a case.

    Attributes:
        run: the part that is measured; it may return Metrics.
        amount: how many of the case's units it does; costs are given for one unit.
        before: not measured.
        after: not measured; returns further metrics, from those that were measured.
        warm_up: whether it runs once before it is measured.
    """

    run: Callable[[], object]
    amount: float = 1.0
    before: Callable[[], object] = dict
    after: Callable[[Mapping[str, float]], Mapping[str, float]] = lambda measured: {}
    warm_up: bool = False


def measured(run: Callable[[], T]) -> tuple[T, Metrics]:
    """Returns the result of `run` and its metrics: seconds, peak of memory, and growth of memory up to the peak."""
    with contextlib.suppress(OSError):  # the kernel (Linux) forgets the peak so far
        Path("/proc/self/clear_refs").write_text("5")
    held, cpu_s, started = status_bytes("VmRSS"), cpu_seconds(), time.monotonic()
    result = run()
    wall_s, cpu_s, peak = time.monotonic() - started, cpu_seconds() - cpu_s, status_bytes("VmHWM")
    return result, Metrics(wall_s=wall_s, cpu_s=cpu_s, peak_bytes=peak, grown_bytes=peak - held)


def cpu_seconds() -> float:
    """Returns the CPU seconds of this process and of its children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def status_bytes(key: str) -> int:
    """Returns a line of this process's status (Linux); 0 elsewhere. getrusage's peak may be the parent's."""
    return next((int(value.split()[0]) * 1024 for name, value in kernel_lines("/proc/self/status") if name == key), 0)


def kernel_lines(file: str) -> list[tuple[str, str]]:
    """Returns `name: value` lines of a file of the kernel's."""
    text = Path(file).read_text() if Path(file).exists() else ""
    return [(line.partition(":")[0].strip(), line.partition(":")[2].strip()) for line in text.splitlines()]


def size_of(path: Path) -> int:
    return sum(file.stat().st_size for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())
