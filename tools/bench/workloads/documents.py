"""A whole job, in a process of its own, on a source of few and of many documents: when its first step begins.

Variants: `N documents` is a first start, which counts the source; `again N documents` is the next start of that run,
which reads the index. Each is asked to stop when it has committed some batches.
"""

import functools
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from tools.bench.work import Metrics, Work
from tools.bench.workloads.input import number_in, write_short
from tools.tiny_model import write_tiny_model

ROOT = Path(__file__).parents[3]


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`batches` are committed by a start, of `batch` documents each."""

    batches: int = 2
    batch: int = 32


def make_inputs(options: Options, inputs: Path) -> None:
    write_tiny_model(inputs / "model", layers=2)


def prepare(variant: str, options: Options, inputs: Path, scratch: Path) -> Work:
    documents, again = number_in(variant), variant.startswith("again")
    job = [
        *(f"model.path={inputs / 'model'}", "model.dtype=float32", "parity.samples=0", "extract.layers=[1]"),
        *(f"tasks.path={scratch / 'documents'}", "tasks.format=jsonl"),
        *("extract.seq_len=32", "extract.rows_per_device=16", f"extract.save_every_n_samples={options.batch}"),
        f"storage.run_dir={scratch / 'run'}",
    ]

    start = functools.partial(run_job, job, scratch / "run", options.batches)

    def before() -> None:
        write_short(scratch / "documents", documents)
        if again:
            start()

    return Work(started(start, scratch / "run"), before=before)


def run_job(job: list[str], run: Path, batches: int) -> Metrics:
    """Runs a job until it has committed so many batches; the metrics are those of its process."""
    enough = len(list(run.glob("commits/*.json"))) + batches
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    began = time.monotonic()
    child = os.posix_spawn(sys.executable, [sys.executable, "-m", "pod_job", *job], env)
    asked = False
    while True:
        ended, status, used = os.wait4(child, os.WNOHANG)
        if ended:
            break
        if not asked and len(list(run.glob("commits/*.json"))) >= enough:
            os.kill(child, signal.SIGTERM)
            asked = True
        time.sleep(0.02)
    if status:
        raise SystemExit(f"error: the job ended with status {os.waitstatus_to_exitcode(status)}")
    cpu_s, peak = used.ru_utime + used.ru_stime, used.ru_maxrss * 1024
    return Metrics(wall_s=time.monotonic() - began, cpu_s=cpu_s, peak_bytes=peak)


def started(start: Callable[[], Metrics], run: Path) -> Callable[[], Metrics]:
    """Returns what starts the job; `start_s` is the time to its first step, `check_s` to the end of its checks."""

    def work() -> Metrics:
        from pod_job.run_folder.status import Phase
        from pod_job.run_folder.timeline import read_timelines
        from pod_job.storage.open import open_folder

        began = time.time()
        metrics = start()
        last = max(read_timelines(open_folder(run)), key=lambda timeline: timeline.attempt)
        phases = last.phases
        return Metrics(
            **metrics,
            start_s=phases[Phase.extracting.value] - began,
            check_s=phases[Phase.arrived.value] - began,
        )

    return work
