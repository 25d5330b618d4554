"""One measurement in a process of its own: `python -m tools.bench.worker WORKLOAD VARIANT OPTIONS FOLDER`.

Prepares the work of the variant, measures it and prints an Answer as JSON. The VARIANT `inputs` makes what all variants
of the case share.
"""

import contextlib
import importlib
import importlib.metadata
import os
import platform
import resource
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from pod_job import __version__
from tools.bench.results import Answer

PACKAGES = ("jax", "libtpu", "torch", "transformers", "transformer-lens", "nnsight", "sae-lens", "datasets")


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


def main(name: str, variant: str, options: str, folder: str) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    inputs, scratch = Path(folder) / "inputs", Path(folder) / "scratch"
    try:
        workload = importlib.import_module(f"tools.bench.workloads.{name}")
        settings = msgspec.json.decode(options, type=workload.Options, strict=False)
        if variant == "inputs":
            empty(inputs)
            workload.make_inputs(settings, inputs)
            answer = Answer()
        else:
            work = workload.prepare(variant, settings, inputs, scratch)
            answer = Answer(measured(work, scratch), machine=machine(), versions=versions())
    except (NotImplementedError, ImportError) as error:
        answer = Answer(failed=str(error))
    print(msgspec.json.encode(answer).decode(), file=answers, flush=True)


def measured(work: Work, scratch: Path) -> dict[str, float]:
    """Runs the work. The peak of memory is that of the process so far; `grown` counts from just before the run."""
    if work.warm_up:
        empty(scratch)
        work.before()
        work.run()
    empty(scratch)
    work.before()
    highest = status_bytes("VmHWM")
    restart_peak()
    held, wall, cpu = status_bytes("VmRSS"), time.monotonic(), cpu_seconds()
    reported = work.run()
    wall, cpu, peak = time.monotonic() - wall, cpu_seconds() - cpu, status_bytes("VmHWM")
    metrics = {"wall_s": wall, "cpu_s": cpu, "amount": work.amount}
    metrics |= {"peak_bytes": max(highest, peak), "grown_bytes": peak - held}
    metrics |= reported if isinstance(reported, Metrics) else {}
    return metrics | dict(work.after(metrics))


def empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def cpu_seconds() -> float:
    """Returns the CPU seconds of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def restart_peak() -> None:
    """Lets this process's peak of memory start at what it holds now (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def status_bytes(key: str) -> int:
    """Returns a line of this process's status (Linux); 0 elsewhere. getrusage's peak may be the parent's."""
    return next((int(value.split()[0]) * 1024 for name, value in lines_of("/proc/self/status") if name == key), 0)


def lines_of(file: str) -> list[tuple[str, str]]:
    """Returns `name: value` lines of a file of the kernel's."""
    text = Path(file).read_text() if Path(file).exists() else ""
    return [(line.partition(":")[0].strip(), line.partition(":")[2].strip()) for line in text.splitlines()]


def size_of(path: Path) -> int:
    return sum(file.stat().st_size for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())


def machine() -> str:
    """Returns the processor's name and count, and the accelerator's name where jax computes on one."""
    names = [value for name, value in lines_of("/proc/cpuinfo") if name == "model name"]
    host = f"{os.cpu_count()} CPU cores ({names[0] if names else platform.machine()})"
    jax = sys.modules.get("jax")
    return host if jax is None or jax.default_backend() == "cpu" else f"{host}, {jax.devices()[0].device_kind}"


def versions() -> dict[str, str]:
    """Returns the versions of what this process has imported."""
    imported = [package for package in PACKAGES if package.replace("-", "_") in sys.modules]
    return {"Python": platform.python_version(), "ours": __version__} | {
        package: importlib.metadata.version(package) for package in imported
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
