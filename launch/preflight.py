"""The preflight before anything is paid for, in a process of its own for jax; what it refuses is not started."""

import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from launch import shell
from launch.options import Options
from pod_job.errors import JobError

GIB = 1 << 30
NO_COMPILER = "no TPU compiler here; on x86-64 Linux: pip install '.[preflight]' in a checkout of this program"


def preflight_first(overrides: Sequence[str], options: Options, log: Callable[[str], None]) -> None:
    """Checks a job for a TPU pod before its pod is asked for. JobError where it does not fit, with what to change."""
    if options.no_preflight:
        return
    if not compiler_here():
        log(f"preflight skipped: {NO_COMPILER}")
        return
    log("preflight: compiling for the pod, unless it was before (--no-preflight leaves it out)")
    report = run_preflight(overrides)
    refuse_what_does_not_fit(report)
    log(f"preflight: {summary(report)}")


def compiler_here() -> bool:
    return importlib.util.find_spec("libtpu") is not None


def run_preflight(overrides: Sequence[str]) -> dict[str, Any]:
    """The report. Raises JobError with what the preflight refused."""
    done = shell.call([sys.executable, "-m", "pod_job.preflight", *overrides, "--json"])
    if done.out.startswith("{"):
        return json.loads(done.out)
    last = (done.err.strip().splitlines() or [f"exit status {done.code}"])[-1]
    without = "" if done.code == 2 else "; --no-preflight starts without"
    raise JobError(f"preflight: {last.removeprefix('error: ')}{without}")


def refuse_what_does_not_fit(report: dict[str, Any]) -> None:
    """Raises JobError naming the program that does not fit, and the change that mends it."""
    found = next((each for each in (report["step"], report["decode"]) if each and not each["fits"]), None)
    if found is None:
        return
    mends = next((each["change"] for each in report["changes"] if each["fits"]), None)
    tried = ", ".join(each["change"] for each in report["changes"]) or "nothing smaller"
    fix = f"use {mends}" if mends else f"tried and too big as well: {tried}; use more chips, with sharding=fsdp"
    need = found["hbm"]["total"]  # 0 where the compiler did not say
    size = f"{need / GIB:.2f} GiB of a chip's" if need else "more GiB than a chip's"
    raise JobError(
        f"preflight: {found['program']} needs {size} {found['hbm_available'] / GIB:.2f} and does not fit; {fix}"
    )


def summary(report: dict[str, Any]) -> str:
    """What matters of a report in one line."""
    step, run = report["step"], report["run"]
    memory = f"{max(each['hbm']['total'] for each in (step, report['decode'] or step)) / GIB:.1f} GiB a chip"
    speed = f"{report['tokens_per_s']:,.0f} tokens/s, bound by {(report['decode'] or step)['bottleneck']}"
    cost = f"{run['hours']:.2f} hours, ${run['usd_list']:,.2f} at list price or ${run['usd_spot']:,.2f} on spot"
    better = f"; {report['changes'][0]['change']} would be quicker" if report["changes"] else ""
    return f"{memory}, {speed}, {cost}{better}"
