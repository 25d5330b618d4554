"""Makes run folders of random vectors: finished, merged and of any shape, for benchmarks and fuzzing."""

from dataclasses import dataclass

import ml_dtypes
import numpy as np

from pod_job.finishing.merge import merge
from pod_job.formats.rows_table import Rows, from_columns
from pod_job.run_folder.commit import Batch, commit_batch
from pod_job.run_folder.identity import Identity, ModelIdentity, TasksIdentity, claim
from pod_job.storage.buffers import aligned_empty
from pod_job.storage.folder import Folder

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
CHUNK_ROWS = 8192
TIME = "2026-01-15T10:30:00+00:00"
VOCABULARY = 50_000


@dataclass(frozen=True)
class RunShape:
    """Shape of a run: batches of so many rows, which are the tokens of so many samples of one length.

    Attributes:
        distinct: each batch has vectors of its own; otherwise all have the same, which is quick to make.
    """

    batches: int
    rows: int
    samples: int
    width: int
    taps: tuple[str, ...] = ("layer_12",)
    distinct: bool = False


def make_run(folder: Folder, shape: RunShape) -> None:
    """Writes a finished run, each batch committed as the job does it."""
    claim(folder, identity(shape))
    batch = make_batch(shape, 1)
    for number in range(1, shape.batches + 1):
        made = make_batch(shape, number) if shape.distinct else batch
        commit_batch(folder, Batch(number, made.n_samples, made.rows, made.taps), host=0)
    merge(folder)


def identity(shape: RunShape) -> Identity:
    """Returns what the job claims such a run's folder with."""
    return Identity(
        model=ModelIdentity(name="random", family="llama", layers=30, hidden_dim=shape.width, weights_fingerprint="w"),
        tokenizer="t",
        tasks=TasksIdentity(fingerprint="f", samples=shape.batches * shape.samples),
        taps=list(shape.taps),
        positions="all",
        dtype="bfloat16",
        seq_len=shape.rows,
        save_every_n_samples=shape.samples,
    )


def make_batch(shape: RunShape, number: int) -> Batch:
    """Returns batch `number`: random vectors [rows, width] in bfloat16 for each tap, and their provenance."""
    taps = {tap: make_vectors(shape.rows, shape.width, [number, seed]) for seed, tap in enumerate(shape.taps)}
    return Batch(number, shape.samples, make_rows(shape, number), taps)


def make_vectors(rows: int, width: int, seed: int | list[int] = 0) -> np.ndarray:
    """Returns [rows, width] bfloat16 on a page, dimensions of very different size."""
    rng = np.random.default_rng(seed)
    vectors = aligned_empty((rows, width), BFLOAT16)
    scale = rng.lognormal(size=width).astype(np.float32)
    for start in range(0, rows, CHUNK_ROWS):
        part = vectors[start : start + CHUNK_ROWS]
        part[:] = rng.standard_normal(part.shape, np.float32) * scale
    return vectors


def make_rows(shape: RunShape, number: int) -> Rows:
    """Returns the provenance of all tokens of a batch's samples."""
    rows = np.arange(shape.rows)
    samples = rows // (shape.rows // shape.samples)
    names = np.array([f"task_{sample:08d}" for sample in range(samples[-1] + 1)], object)
    columns = {
        "task_id": names[samples],
        "sample_idx": samples.astype(np.int32),
        "position": rows % (shape.rows // shape.samples),
        "token_id": np.random.default_rng(number).zipf(1.3, shape.rows) % VOCABULARY,
    }
    return from_columns(columns, TIME)
