"""Runs the preflight before anything is paid for, in a process of its own for jax; a refused job is not started."""

import importlib.util
import sys
from collections.abc import Callable, Sequence

from launch import shell
from pod_job.errors import JobError
from pod_job.formats.records import decode
from pod_job.preflight.records import PreflightReport
from pod_job.units import GIB

NO_COMPILER = "no TPU compiler here; on x86-64 Linux: pip install '.[preflight]' in a checkout of this program"


def preflight_first(overrides: Sequence[str], log: Callable[[str], None]) -> None:
    """Checks a job for a TPU pod before its pod is requested. JobError where it does not fit, with a fix."""
    if not compiler_here():
        log(f"preflight skipped: {NO_COMPILER}")
        return
    log("preflight: compiling for the pod, unless it was before (--no-preflight leaves it out)")
    report = run_preflight(overrides)
    refuse_what_does_not_fit(report)
    log(f"preflight: {summary(report)}")


def compiler_here() -> bool:
    return importlib.util.find_spec("libtpu") is not None


def run_preflight(overrides: Sequence[str]) -> PreflightReport:
    """Returns the report. Raises JobError with the preflight's last line where it ends without one."""
    done = shell.call([sys.executable, "-m", "pod_job.preflight", *overrides, "--json"])
    if done.out.startswith("{"):
        return decode(done.out, PreflightReport, "preflight")
    last = (done.err.strip().splitlines() or [f"exit status {done.code}"])[-1]
    without = "" if done.code == 2 else "; --no-preflight starts without"
    raise JobError(f"preflight: {last.removeprefix('error: ')}{without}")


def refuse_what_does_not_fit(report: PreflightReport) -> None:
    """Raises JobError naming the program that does not fit, and a change with which it does."""
    too_big = next((program for program in report.programs if not program.fits), None)
    if too_big is None:
        return
    fitting = next((change.change for change in report.changes if change.fits), None)
    tried = ", ".join(change.change for change in report.changes) or "nothing smaller"
    fix = f"use {fitting}" if fitting else f"tried and too big as well: {tried}; use more chips, with sharding=fsdp"
    need = too_big.hbm["total"]  # 0 where the compiler reports no size
    size = f"{need / GIB:.2f} GiB of a chip's" if need else "more GiB than a chip's"
    raise JobError(
        f"preflight: {too_big.program} needs {size} {too_big.hbm_available / GIB:.2f} and does not fit; {fix}"
    )


def summary(report: PreflightReport) -> str:
    """Returns memory, speed and cost of a job that fits in one line."""
    run = report.run
    assert run is not None, "a report of a job that fits has its run"
    memory = f"{max(program.hbm['total'] for program in report.programs) / GIB:.1f} GiB a chip"
    speed = f"{report.tokens_per_s:,.0f} tokens/s, bound by {report.bottleneck}"
    cost = f"{run.hours:.2f} hours, {run.cost}"
    better = f"; {report.changes[0].change} would be quicker" if report.changes else ""
    return f"{memory}, {speed}, {cost}{better}"
