"""A run whose vectors are sparse sums of a few directions, with attention sinks, for an autoencoder to recover."""

from pathlib import Path

import ml_dtypes
import numpy as np

from pod_job.finishing.merge import merge
from pod_job.formats import rows_table
from pod_job.run_folder.commit import Batch, commit_batch
from pod_job.run_folder.identity import claim
from pod_job.storage.open import open_folder
from tests.sample_runs import TIME, WIDTH, identity

TAP = "layer_6"
DIRECTIONS, ACTIVE, ROWS = 24, 3, 1500
SINK_EVERY = 50


def sparse_run(folder: Path, batches: int = 3) -> Path:
    """Writes the run; every 50th row is a sink, with a hundred times the norm of the others."""
    rng = np.random.default_rng(0)
    directions = rng.standard_normal((DIRECTIONS, WIDTH))
    run = open_folder(folder)
    claim(run, identity(ROWS * batches, (TAP,), per_batch=ROWS))
    for number in range(1, batches + 1):
        chosen = rng.random((ROWS, DIRECTIONS)).argsort(axis=1)[:, :ACTIVE]
        codes = np.zeros((ROWS, DIRECTIONS))
        np.put_along_axis(codes, chosen, rng.uniform(1, 2, (ROWS, ACTIVE)), axis=1)
        vectors = codes @ directions + 3
        sink = np.arange(ROWS) % SINK_EVERY == 0
        vectors[sink] += 1000
        columns = {
            "task_id": [f"task_{row}" for row in range(ROWS)],
            "sample_idx": np.zeros(ROWS, int),
            "position": np.arange(ROWS),
            "token_id": rng.integers(0, 50_000, ROWS),
            "sink": sink,
        }
        taps = {TAP: vectors.astype(np.float32).astype(ml_dtypes.bfloat16)}
        commit_batch(run, Batch(number, ROWS, rows_table.from_columns(columns, TIME), taps), host=0)
    merge(run)
    return folder
