"""Peak memory of writer, reader, merge and shuffle against the size of the data, and a merge of many batches.

Each measurement is a process of its own; what it had before it began is not counted.
"""

import json
import multiprocessing
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pod_job.finishing.merge import merge
from pod_job.finishing.shuffle import shuffle
from pod_job.formats.checksummed_json import seal
from pod_job.reading.dataset import ActivationDataset
from pod_job.run_folder import layout
from pod_job.run_folder.commit import Batch, commit_batch, read_record
from pod_job.run_folder.identity import claim
from pod_job.storage.open import open_folder
from tools.bench_storage.measure import (
    BATCH_ROWS,
    PROMPT_TOKENS,
    WIDTH,
    identity,
    make_rows,
    make_run,
    make_vectors,
    timed,
)

SIZES = (4, 8, 16)
"""In batches of BATCH_ROWS: 235 MB to 939 MB of vectors."""
RECORD_ROWS = 512
PART_BYTES = 64 << 20


def memory(scratch: Path) -> dict[str, Any]:
    """Per part and number of batches, how much the process grew, in MB."""
    runs = {size: scratch / f"memory_{size}" for size in SIZES}
    grown: dict[str, dict[str, float]] = {"writer": {}, "reader": {}, "shuffle": {}, "merge": {}}
    for size, run in runs.items():
        grown["writer"][str(size)] = alone(make_run, open_folder(run), size * BATCH_ROWS)["mb"]
        grown["reader"][str(size)] = alone(read_epoch, run)["mb"]
        grown["shuffle"][str(size)] = alone(shuffle_run, run, scratch / "shuffled")["mb"]
        shutil.rmtree(scratch / "shuffled")
        shutil.rmtree(run)
    for records in (1_000, 4_000):
        grown["merge"][str(records)] = merging(scratch, records)["mb"]
    return {"mb_grown_by_batches": grown, "mb_of_a_batch": round(BATCH_ROWS * WIDTH * 2 / 1e6)}


def merging(scratch: Path, records: int) -> dict[str, Any]:
    """Seconds and MB of a merge of so many batches, four taps each."""
    run = scratch / f"merge_{records}"
    make_records(run, records)
    found = alone(merge_run, run)
    shutil.rmtree(run)
    return {"batches": records, **found}


def share_of_metadata(scratch: Path) -> dict[str, float]:
    """Bytes that are not vectors, as a share of those that are: one tap, all positions."""
    run = scratch / "share"
    make_run(open_folder(run), 4 * BATCH_ROWS)
    sizes = {path: path.stat().st_size for path in run.rglob("*") if path.is_file()}
    vectors = sum(size for path, size in sizes.items() if path.suffix == ".safetensors")
    shutil.rmtree(run)
    return {"share_of_vectors": round((sum(sizes.values()) - vectors) / vectors, 5)}


def alone(way: Callable[..., Any], *arguments: Any) -> dict[str, float]:
    """Seconds, CPU seconds and MB that a new process takes for it."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_measured, args=(theirs, way, arguments))
    process.start()
    theirs.close()
    found = ours.recv()
    process.join()
    return found


def _measured(pipe: Any, way: Callable[..., Any], arguments: tuple) -> None:
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew; getrusage's would be the parent's, too
    before = kilobytes("VmRSS")
    cost = timed(lambda: way(*arguments))
    grown = kilobytes("VmHWM") - before
    pipe.send({"wall_s": round(cost.wall_s, 2), "cpu_s": round(cost.cpu_s, 2), "mb": round(grown / 1e3)})


def kilobytes(of: str) -> int:
    """A line of this process's status (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{of}:"))


def read_epoch(run: Path) -> None:
    for _ in ActivationDataset(run, layer=12).batches(4096):
        pass


def shuffle_run(run: Path, out: Path) -> None:
    shuffle(run, out, part_bytes=PART_BYTES)


def merge_run(run: Path) -> None:
    merge(open_folder(run), processes=os.cpu_count() or 1)


def make_records(run: Path, records: int) -> None:
    """A run folder in which so many batches are committed; of their files only the first batch's exist."""
    folder = open_folder(run)
    taps = {tap: make_vectors(RECORD_ROWS) for tap in ("layer_6", "layer_12", "layer_18", "layer_24_norm")}
    samples = RECORD_ROWS // PROMPT_TOKENS
    whole = identity(records, list(taps)) | {"tasks": {"samples": records * samples}, "save_every_n_samples": samples}
    claim(folder, whole)
    commit_batch(folder, Batch(1, samples, make_rows(RECORD_ROWS), taps), host=0)
    text = json.dumps(read_record(folder, 1), separators=(",", ":"))
    for number in range(2, records + 1):
        changed = text.replace("batch_000001", f"batch_{number:06d}").replace('"batch":1,', f'"batch":{number},')
        (run / layout.commit_file(number)).write_bytes(seal(changed))
