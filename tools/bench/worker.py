"""One measurement in a process of its own: `python -m tools.bench.worker WORKLOAD VARIANT OPTIONS FOLDER`.

Prepares the work of the variant, measures it and prints an Answer as JSON. The VARIANT `inputs` makes what all variants
of the case share.
"""

import importlib
import importlib.metadata
import os
import platform
import shutil
import sys
from pathlib import Path

import msgspec

from pod_job import __version__
from tools.bench.results import Answer
from tools.bench.work import Metrics, Work, kernel_lines, measured, status_bytes

PACKAGES = ("jax", "libtpu", "torch", "transformers", "transformer-lens", "nnsight", "sae-lens", "datasets")


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
            answer = Answer(metrics_of(work, scratch), machine=machine(), versions=versions())
    except (NotImplementedError, ImportError) as error:
        answer = Answer(failed=str(error))
    print(msgspec.json.encode(answer).decode(), file=answers, flush=True)


def metrics_of(work: Work, scratch: Path) -> dict[str, float]:
    """Runs the work and returns its metrics; the peak of memory is that of the process so far."""
    if work.warm_up:
        empty(scratch)
        work.before()
        work.run()
    empty(scratch)
    work.before()
    highest = status_bytes("VmHWM")
    reported, metrics = measured(work.run)
    metrics |= {"peak_bytes": max(highest, metrics["peak_bytes"]), "amount": work.amount}
    metrics |= reported if isinstance(reported, Metrics) else {}
    return metrics | dict(work.after(metrics))


def empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def machine() -> str:
    """Returns the processor's name and count, and the accelerator's name where jax computes on one."""
    names = [value for name, value in kernel_lines("/proc/cpuinfo") if name == "model name"]
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
