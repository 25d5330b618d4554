"""Writing: committed batches in a folder and in a bucket, beside a plain file of the same bytes."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pod_job.formats import rows_table, statistics
from pod_job.run_folder.commit import Batch, commit_batch
from pod_job.run_folder.identity import claim
from pod_job.storage.checksums import checksum
from pod_job.storage.open import open_folder
from tools.bench_storage.measure import (
    BATCH_ROWS,
    PROMPT_TOKENS,
    Cost,
    identity,
    in_turn,
    make_rows,
    make_vectors,
    per_gb,
)

TAPS = ("layer_6", "layer_12", "layer_18", "layer_24_norm")


def writing(scratch: Path, bucket: str | None, rounds: int) -> dict[str, Any]:
    """CPU and wall seconds per GB of vectors, four taps of a batch; `bucket` is gs://... where there is one."""
    taps = {tap: make_vectors(BATCH_ROWS, seed) for seed, tap in enumerate(TAPS)}
    batch = Batch(1, BATCH_ROWS // PROMPT_TOKENS, make_rows(BATCH_ROWS), taps)
    gigabytes = sum(vectors.nbytes for vectors in taps.values()) / 1e9
    numbers = iter(range(10**6))
    ways = {
        "plain files": lambda: plain_files(taps, scratch / "plain"),
        "folder": lambda: commit(batch, str(scratch / f"run_{next(numbers)}")),
    }
    if bucket:
        ways["bucket"] = lambda: commit(batch, f"{bucket}/run_{next(numbers)}")
    parts = {
        "of which statistics": lambda: [statistics.of(vectors) for vectors in taps.values()],
        "of which crc32c": lambda: [checksum([vectors.view("u1").data]) for vectors in taps.values()],
        "of which rows table": lambda: rows_table.to_parquet(batch.rows),
    }

    def clean() -> None:
        for path in scratch.glob("run_*"):
            shutil.rmtree(path)

    costs: dict[str, Cost] = in_turn(ways | parts, rounds, clean)
    clean()
    found: dict[str, Any] = {"seconds_per_gb": per_gb(costs, gigabytes), "gigabytes": round(gigabytes, 3)}
    found["folder_cpu_s_per_gb"] = found["seconds_per_gb"]["folder"]["cpu_s"]
    if bucket:
        more = costs["bucket"].cpu_s - costs["folder"].cpu_s
        found["bucket_more_cpu_s_per_gb"] = round(more / gigabytes, 3)
    return found


def commit(batch: Batch, url: str) -> None:
    folder = open_folder(url)
    claim(folder, identity(1, list(TAPS)))
    commit_batch(folder, batch, host=0)


def plain_files(taps: Mapping[str, np.ndarray], path: Path) -> None:
    for vectors in taps.values():
        with open(path, "wb", buffering=0) as file:
            file.write(vectors.view("u1").data)
            os.fsync(file.fileno())
        path.unlink()
