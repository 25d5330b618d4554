"""Times of several ways to do one thing, taken in turn; vectors like a model's; a run folder of them."""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from pod_job.finishing.merge import merge
from pod_job.formats.rows_table import Rows, from_columns
from pod_job.run_folder.commit import Batch, commit_batch
from pod_job.run_folder.identity import claim
from pod_job.storage.buffers import aligned_empty
from pod_job.storage.folder import Folder

WIDTH = 896
BATCH_ROWS = 32_768
PROMPT_TOKENS = 128
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


@dataclass(frozen=True)
class Cost:
    """Of one turn: the CPU seconds of this process, and the time that passed."""

    cpu_s: float
    wall_s: float


def timed(way: Callable[[], Any]) -> Cost:
    cpu, wall = time.process_time(), time.monotonic()
    way()
    return Cost(time.process_time() - cpu, time.monotonic() - wall)


def in_turn(ways: Mapping[str, Callable[[], Any]], rounds: int, before: Callable[[], Any] = int) -> dict[str, Cost]:
    """Each way's least costs of so many rounds; `before` runs before each turn and is not timed."""
    costs: dict[str, list[Cost]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            before()
            costs[name].append(timed(way))
    return {
        name: Cost(min(cost.cpu_s for cost in turns), min(cost.wall_s for cost in turns))
        for name, turns in costs.items()
    }


def per_gb(costs: Mapping[str, Cost], gigabytes: float) -> dict[str, dict[str, float]]:
    """Seconds per gigabyte, rounded for people."""
    return {
        name: {key: round(value / gigabytes, 3) for key, value in asdict(cost).items()} for name, cost in costs.items()
    }


def make_vectors(rows: int, seed: int = 0) -> np.ndarray:
    """[rows, WIDTH] bfloat16 on a page, dimensions of very different size."""
    rng = np.random.default_rng(seed)
    vectors = aligned_empty((rows, WIDTH), BFLOAT16)
    scale = rng.lognormal(size=WIDTH).astype(np.float32)
    for start in range(0, rows, 8192):
        part = vectors[start : start + 8192]
        part[:] = rng.standard_normal(part.shape, np.float32) * scale
    return vectors


def make_rows(rows: int, seed: int = 0) -> Rows:
    """Provenance of all tokens of prompts of PROMPT_TOKENS."""
    numbers = np.arange(rows)
    samples = numbers // PROMPT_TOKENS
    columns = {
        "task_id": np.array([f"task_{sample:08d}" for sample in range(rows // PROMPT_TOKENS + 1)], object)[samples],
        "sample_idx": np.zeros(rows, np.int32),
        "position": numbers % PROMPT_TOKENS,
        "token_id": np.random.default_rng(seed).zipf(1.3, rows) % 150_000,
    }
    return from_columns(columns, "2026-01-15T10:30:00+00:00")


def identity(batches: int, taps: list[str], batch_rows: int = BATCH_ROWS) -> dict[str, Any]:
    samples = batch_rows // PROMPT_TOKENS
    return {
        "model": {"name": "bench", "hidden_dim": WIDTH},
        "tasks": {"samples": batches * samples},
        "taps": taps,
        "dtype": "bfloat16",
        "save_every_n_samples": samples,
    }


def make_run(folder: Folder, rows: int, taps: tuple[str, ...] = ("layer_12",), batch_rows: int = BATCH_ROWS) -> None:
    """A finished run of at least so many rows, in whole batches, all of the same vectors."""
    batches = -(-rows // batch_rows)
    claim(folder, identity(batches, list(taps), batch_rows))
    table, vectors = make_rows(batch_rows), {tap: make_vectors(batch_rows) for tap in taps}
    for number in range(1, batches + 1):
        commit_batch(folder, Batch(number, batch_rows // PROMPT_TOKENS, table, vectors), host=0)
    merge(folder)


def files_of(root: Path) -> Iterator[Path]:
    return (path for path in sorted(root.rglob("*")) if path.is_file())


def evict(*roots: Path) -> None:
    """Lets the kernel forget what it keeps in memory of these files."""
    for root in roots:
        for path in files_of(root) if root.is_dir() else [root]:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)
