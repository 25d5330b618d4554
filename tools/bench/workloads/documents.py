"""A whole job, in a process of its own, on a source of few and of many documents: when its first step begins.

Variants: `N documents` is a first start, which counts the source and extracts the first documents; `again N documents`
is a start of that run after its last batch was lost, which reads the index.
"""

import os
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
    """`limit`: documents that are extracted, of many; `batch` of them are committed together."""

    limit: int = 1000
    batch: int = 256


def make_inputs(options: Options, inputs: Path) -> None:
    write_tiny_model(inputs / "model", layers=2)


def prepare(variant: str, options: Options, inputs: Path, scratch: Path) -> Work:
    documents, again = number_in(variant), variant.startswith("again")
    job = [
        *(f"model.path={inputs / 'model'}", "model.dtype=float32", "parity.samples=0", "extract.layers=[1]"),
        *(f"tasks.path={scratch / 'documents'}", "tasks.format=jsonl", f"tasks.limit={options.limit}"),
        *("extract.seq_len=32", "extract.rows_per_device=16", f"extract.save_every_n_samples={options.batch}"),
        f"storage.run_dir={scratch / 'run'}",
    ]

    def before() -> None:
        write_short(scratch / "documents", documents)
        if again:
            run_job(job)
            lose_last_batch(scratch / "run")

    return Work(started(job, scratch / "run"), before=before)


def run_job(job: list[str]) -> Metrics:
    """Runs a job to its end; the metrics are those of its process."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    began = time.monotonic()
    _, status, used = os.wait4(os.posix_spawn(sys.executable, [sys.executable, "-m", "pod_job", *job], env), 0)
    if status:
        raise SystemExit(f"error: the job ended with status {os.waitstatus_to_exitcode(status)}")
    cpu_s, peak = used.ru_utime + used.ru_stime, used.ru_maxrss * 1024
    return Metrics(wall_s=time.monotonic() - began, cpu_s=cpu_s, peak_bytes=peak)


def started(job: list[str], run: Path) -> Callable[[], Metrics]:
    """Returns what runs the job; `start_s` is the time up to its first step, `check_s` up to the end of its checks."""

    def work() -> Metrics:
        from pod_job.run_folder.status import Phase
        from pod_job.run_folder.timeline import read_timelines
        from pod_job.storage.open import open_folder

        began = time.time()
        metrics = run_job(job)
        last = max(read_timelines(open_folder(run)), key=lambda timeline: timeline.attempt)
        phases = last.phases
        return Metrics(
            **metrics,
            start_s=phases[Phase.extracting.value] - began,
            check_s=phases[Phase.arrived.value] - began,
        )

    return work


def lose_last_batch(run: Path) -> None:
    """Removes the last batch of a finished run, and the record that it is complete."""
    from pod_job.run_folder.layout import COMMITS, METADATA

    (run / METADATA).unlink()
    last = max((run / COMMITS).glob("*.json"))
    last.unlink()
    for file in (run / "activations").glob(f"*{last.stem}*"):
        file.unlink()
