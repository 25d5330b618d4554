"""Small runs for tests: batches of random vectors, and a run folder locally or in the bucket emulator."""

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from pod_job.finishing import merge
from pod_job.formats import rows_table
from pod_job.formats.checksummed_json import read_checksummed, with_checksum
from pod_job.run_folder.commit import Batch, commit_batch
from pod_job.run_folder.identity import Identity, ModelIdentity, TasksIdentity, claim
from pod_job.storage.folder import Folder
from pod_job.storage.open import open_folder
from tools.bucket import bucket_available, bucket_server

TAPS = ("layer_6", "layer_30_norm")
WIDTH = 16
PER_BATCH = 8
TIME = "2025-01-15T10:30:00+00:00"
BUCKET = "test-bucket"


@contextmanager
def folders(kind: str, tmp: Path, require: Callable[[bool, str], None]) -> Iterator[Callable[[], Folder]]:
    """A function that opens a new, empty run folder: under `tmp`, or in an emulator that runs while this is open."""
    numbers = itertools.count()
    if kind == "local":
        yield lambda: open_folder(tmp / f"run_{next(numbers)}")
        return
    require(bucket_available() is None, "the bucket emulator")
    with bucket_server(tmp / "server", BUCKET) as endpoint, pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", endpoint)
        yield lambda: open_folder(f"gs://{BUCKET}/runs/{next(numbers)}")


def identity(samples: int, taps: Sequence[str] = TAPS, dtype: str = "bfloat16", per_batch: int = PER_BATCH) -> Identity:
    """Returns what the job would claim a run folder with."""
    return Identity(
        model=ModelIdentity(name="demo/tiny", family="llama", layers=30, hidden_dim=WIDTH, weights_fingerprint="w"),
        tokenizer="t",
        tasks=TasksIdentity(fingerprint="f", samples=samples),
        taps=list(taps),
        positions="all",
        dtype=dtype,
        seq_len=64,
        save_every_n_samples=per_batch,
    )


def batch(number: int, count: int, *, seed: int = 0, time: str = TIME, noise: float = 0.0, **other: Any) -> Batch:
    """Batch `number` with `count` rows, the same for the same arguments; `noise` is another mesh's rounding."""
    rng = np.random.default_rng([seed, number])
    samples = np.sort(rng.integers(0, PER_BATCH, count))
    columns = {
        "task_id": [f"task_{number}_{sample}" for sample in samples],
        "sample_idx": samples,
        "position": np.arange(count),
        "token_id": rng.integers(0, 50_000, count),
    }
    dtype = other.get("dtype", ml_dtypes.bfloat16)
    vectors = {tap: rng.standard_normal((count, WIDTH)) + noise for tap in other.get("taps", TAPS)}
    taps = {tap: values.astype(np.float32).astype(dtype) for tap, values in vectors.items()}
    return Batch(number, other.get("n_samples", PER_BATCH), rows_table.from_columns(columns, time), taps)


def finished_run(folder: Folder, counts: list[int], taps: tuple[str, ...] = TAPS) -> list[Batch]:
    """A complete, merged run whose batches have so many rows."""
    claim(folder, identity(PER_BATCH * len(counts), taps))
    batches = [batch(number, count, taps=taps) for number, count in enumerate(counts, 1)]
    for committed in batches:
        commit_batch(folder, committed, host=0)
    merge.merge(folder)
    return batches


def joined(batches: list[Batch], tap: str) -> np.ndarray:
    """All vectors of a tap, in the order in which the dataset numbers them."""
    return np.concatenate([committed.taps[tap] for committed in batches])


def rewrite(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Changes a commit record or metadata.json so that its checksum still fits: a lie, not damage."""
    content = json.loads(read_checksummed(path.read_bytes(), str(path)))
    change(content)
    path.write_bytes(with_checksum(json.dumps(content).encode()))
