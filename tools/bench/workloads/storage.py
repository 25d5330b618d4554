"""Writing of batches, compacting, and the memory of writer, reader, shuffle and merge against the size of the data."""

import itertools
import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import numpy as np

from pod_job.finishing.compact import compact
from pod_job.finishing.merge import merge
from pod_job.finishing.shuffle import shuffle
from pod_job.formats import rows_table, statistics
from pod_job.formats.checksummed_json import with_checksum
from pod_job.formats.records import encode
from pod_job.reading.dataset import ActivationDataset
from pod_job.run_folder import layout
from pod_job.run_folder.commit import Batch, commit_batch, read_record
from pod_job.run_folder.identity import claim
from pod_job.storage.checksums import checksum
from pod_job.storage.open import open_folder
from tools.bench.cases import BUCKET
from tools.bench.work import Work, size_of
from tools.bench.workloads.reading import BATCH, BATCH_ROWS, WIDTH, evict, exhaust, gigabytes, shape_of
from tools.random_run import RunShape, identity, make_batch, make_rows, make_run, make_vectors

FOUR_TAPS = ("layer_6", "layer_12", "layer_18", "layer_24_norm")
RECORD_ROWS = 512
PART_BYTES = 64 << 20


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Sizes of the data.

    Attributes:
        sizes: batches of 59 MB in the runs that are read and shuffled.
        rows: of the batch that is written.
        small_batches: in the run that is compacted; each is a prompt.
    """

    sizes: tuple[int, ...] = ()
    rows: int = BATCH_ROWS
    small_batches: int = 500
    small_rows: int = 128


def make_inputs(options: Options, inputs: Path) -> None:
    for size in options.sizes:
        make_run(open_folder(inputs / str(size)), shape_of(size * BATCH_ROWS))


def prepare(variant: str, options: Options, inputs: Path, scratch: Path) -> Work:
    name, _, rest = variant.partition(" ")
    if name == "write":
        return writing(rest, options, scratch)
    if name in ("loose", "compacted", "compacting"):
        shape = RunShape(options.small_batches, options.small_rows, 1, WIDTH)
        return compaction(name, f"gs://{BUCKET}" if rest == "bucket" else str(inputs), shape)
    return memory(name, int(rest), inputs, scratch)


def writing(way: str, options: Options, scratch: Path) -> Work:
    """Returns the writing of one batch of four taps, or a part of it."""
    shape, numbers = RunShape(1, options.rows, options.rows // 128, WIDTH, FOUR_TAPS), itertools.count()
    taps = {tap: make_vectors(options.rows, WIDTH, seed) for seed, tap in enumerate(FOUR_TAPS)}
    batch = Batch(1, shape.samples, make_rows(shape, 1), taps)
    ways: dict[str, Callable[[], object]] = {
        "plain": lambda: plain_files(taps, scratch / "plain"),
        "folder": lambda: commit(batch, shape, str(scratch / f"run_{next(numbers)}")),
        "bucket": lambda: commit(batch, shape, f"gs://{BUCKET}/{uuid.uuid4()}"),
        "statistics": lambda: [statistics.compute(vectors) for vectors in taps.values()],
        "crc32c": lambda: [checksum([vectors.view("u1").data]) for vectors in taps.values()],
        "rows": lambda: rows_table.to_parquet(batch.rows),
    }
    return Work(ways[way], gigabytes(len(FOUR_TAPS) * options.rows), warm_up=True)


def commit(batch: Batch, shape: RunShape, url: str) -> None:
    folder = open_folder(url)
    claim(folder, identity(shape))
    commit_batch(folder, batch, host=0)


def plain_files(taps: Mapping[str, np.ndarray], path: Path) -> None:
    for vectors in taps.values():
        with open(path, "wb", buffering=0) as file:
            file.write(vectors.view("u1").data)
            os.fsync(file.fileno())
        path.unlink()


def compaction(name: str, place: str, shape: RunShape) -> Work:
    """Returns a cold epoch over small batches, loose or compacted, or compacting them."""
    amount, run = gigabytes(shape.batches * shape.rows), open_folder(f"{place}/{uuid.uuid4()}")
    make_run(run, shape)
    if name == "compacting":
        return Work(lambda: compact(run), amount)
    if name == "compacted":
        compact(run)
    dataset = ActivationDataset(run.url, 12)
    files = len({entry.file for entry in dataset.metadata.batches})
    return Work(
        lambda: exhaust(dataset.batches(BATCH)),
        amount,
        before=lambda: evict(Path(run.url)),
        after=lambda measured: {"files": files},
        warm_up=True,
    )


def memory(name: str, size: int, inputs: Path, scratch: Path) -> Work:
    """Returns one epoch or pass over `size` batches: whole ones of 59 MB, or for a merge the records of small ones."""
    run, out = inputs / str(size), scratch / "run"
    ways: dict[str, Callable[[], object]] = {
        "writer": lambda: make_run(open_folder(out), shape_of(size * BATCH_ROWS)),
        "reader": lambda: exhaust(ActivationDataset(run, layer=12).batches(BATCH)),
        "shuffle": lambda: shuffle(run, out, part_bytes=PART_BYTES),
        "merge": lambda: merge(open_folder(out), processes=os.cpu_count() or 1),
    }

    def after(measured: Mapping[str, float]) -> Mapping[str, float]:
        vectors = gigabytes(size * BATCH_ROWS) * 1e9
        return {"of_vectors": size_of(out) / vectors - 1} if name == "writer" else {}

    return Work(ways[name], size, before=lambda: make_records(out, size) if name == "merge" else None, after=after)


def make_records(run: Path, records: int) -> None:
    """Writes a run folder in which so many batches are committed; only the first batch's files exist."""
    folder, shape = open_folder(run), RunShape(records, RECORD_ROWS, RECORD_ROWS // 128, WIDTH, FOUR_TAPS)
    claim(folder, identity(shape))
    commit_batch(folder, make_batch(shape, 1), host=0)
    text = encode(read_record(folder, 1)).decode()
    for number in range(2, records + 1):
        changed = text.replace("batch_000001", f"batch_{number:06d}").replace('"batch":1,', f'"batch":{number},')
        (run / layout.commit_file(number)).write_bytes(with_checksum(changed.encode()))
