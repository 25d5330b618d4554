"""Shuffled epochs of one tap: ours beside a memory map, Hugging Face datasets, safe_open, SAELens, and the disk."""

import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from pod_job.formats.safetensors import write_parts
from pod_job.interop.sae_lens import export_sae_lens
from pod_job.reading.dataset import ActivationDataset
from pod_job.reading.row_reader import READS_IN_FLIGHT
from pod_job.run_folder import layout
from pod_job.storage.open import open_folder
from tools.bench.cases import BUCKET
from tools.bench.work import Work, size_of
from tools.random_run import RunShape, make_run

WIDTH, BATCH_ROWS = 896, 32_768
BATCH = 4096
READ_BYTES = 8 << 20
FEW = 8  # batches that slow readers read; costs are given for the same number of vectors
BUCKET_RUN = f"gs://{BUCKET}/reading"
SOURCES = {"memory_map": "rows.bin", "datasets": "arrow", "safe_open": "rows.safetensors", "sae_lens": "cached"}

Reader = Callable[[], Iterable[Any]]


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The run's rows, whether it is in a bucket, and whether nothing of it is in memory when an epoch begins."""

    rows: int = 1_000_000
    cold: bool = False
    bucket: bool = False


def shape_of(rows: int) -> RunShape:
    """Returns the shape of a run of one tap with at least so many rows, in whole batches."""
    return RunShape(-(-rows // BATCH_ROWS), BATCH_ROWS, BATCH_ROWS // 128, WIDTH)


def gigabytes(vectors: int) -> float:
    return vectors * WIDTH * 2 / 1e9


def make_inputs(options: Options, inputs: Path) -> None:
    """Writes the run, and the same vectors in the other formats."""
    make_run(open_folder(BUCKET_RUN if options.bucket else inputs / "run"), shape_of(options.rows))
    if options.bucket:
        return
    dataset = ActivationDataset(inputs / "run", 12)
    with open(inputs / "rows.bin", "wb") as file:
        for start in range(0, len(dataset), BATCH_ROWS):
            file.write(dataset[start : start + BATCH_ROWS].view(np.uint16).data)
    # Neither safetensors' NumPy nor Arrow has bfloat16.
    rows = np.memmap(inputs / "rows.bin", np.float16, "r").reshape(-1, WIDTH)
    with open(inputs / "rows.safetensors", "wb") as file:
        for part in write_parts({"activations": rows}):
            file.write(part)
    write_arrow(rows, inputs / "arrow")
    if not options.cold:
        export_sae_lens(inputs / "run", inputs / "cached", 12, context_size=128)


def write_arrow(rows: np.ndarray, folder: Path) -> None:
    """Writes a Hugging Face data set of one column, as large as the vectors, a batch at a time."""
    import datasets
    import pyarrow as pa
    from datasets.arrow_writer import ArrowWriter

    folder.mkdir()
    features = datasets.Features({"x": datasets.Sequence(datasets.Value("float16"), length=WIDTH)})
    with ArrowWriter(path=str(folder / "rows.arrow"), features=features) as writer:
        for start in range(0, len(rows), BATCH_ROWS):
            values = pa.array(rows[start : start + BATCH_ROWS].reshape(-1))
            writer.write_table(pa.table({"x": pa.FixedSizeListArray.from_arrays(values, WIDTH)}))
        writer.finalize()


def prepare(variant: str, options: Options, inputs: Path, scratch: Path) -> Work:
    """Opens the reader; an epoch of it, or a part where it is slow, is one measurement."""
    rows = shape_of(options.rows).batches * BATCH_ROWS
    slow = variant in ("datasets", "safe_open") or (variant == "memory_map" and options.cold)
    batches = min(FEW, rows // BATCH) if slow else rows // BATCH
    if variant == "sae_lens":
        batches //= 2  # the last whole batches of an epoch need the next epoch's first
    source = inputs / SOURCES.get(variant, "run")
    epoch = READERS[variant](source, batches)
    return Work(
        lambda: exhaust(epoch()),
        gigabytes(rows if variant in ("in_order", "bucket objects") else batches * BATCH),
        before=lambda: evict(inputs) if options.cold else None,
        after=lambda measured: {} if options.bucket else {"bytes": size_of(source)},
        warm_up=True,
    )


def exhaust(items: Iterable[object]) -> None:
    for _ in items:
        pass


def evict(root: Path) -> None:
    """Lets the kernel forget what it keeps in memory of these files."""
    for path in filter(Path.is_file, root.rglob("*")):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def ours(source: Path | str, batches: int, check: str = "first") -> Reader:
    dataset = ActivationDataset(source, layer=12, check=check)
    return lambda: dataset.batches(BATCH, seed=1)


def memory_map(source: Path, batches: int) -> Reader:
    """Returns a gather from numpy.memmap of one file for each batch, in the order of a permutation."""

    def gather() -> Iterator[np.ndarray]:
        vectors = np.memmap(source, np.uint16, "r").reshape(-1, WIDTH)
        order = np.random.default_rng(1).permutation(len(vectors))
        for start in range(0, batches * BATCH, BATCH):
            yield vectors[order[start : start + BATCH]]

    return gather


def hugging_face_datasets(source: Path, batches: int) -> Reader:
    """Returns reading of single rows by a permuted index."""
    import datasets

    rows = datasets.Dataset.from_file(str(source / "rows.arrow")).with_format("numpy")
    order = np.random.default_rng(2).permutation(len(rows))[: batches * BATCH].reshape(batches, BATCH)
    return lambda: (rows[batch]["x"] for batch in order)


def safe_open(source: Path, batches: int) -> Reader:
    """Returns reading of single rows as slices."""
    import safetensors

    def slices() -> Iterator[np.ndarray]:
        with safetensors.safe_open(source, "np") as file:
            rows = file.get_slice("activations")
            order = np.random.default_rng(2).permutation(rows.get_shape()[0])[: batches * BATCH]
            for batch in order.reshape(batches, BATCH):
                yield np.concatenate([rows[int(row) : int(row) + 1] for row in batch])

    return slices


def sae_lens(source: Path, batches: int) -> Reader:
    from tools.bench.ways.sae_lens import activations_store

    return lambda: itertools.islice(activations_store(source, BATCH, WIDTH), batches)


def in_order(source: Path, batches: int) -> Reader:
    """Returns reading of every file from beginning to end in large reads."""

    def read() -> Iterator[int]:
        buffer = np.empty(READ_BYTES, np.uint8)
        for path in sorted((source / "activations").iterdir()):
            with open(path, "rb", buffering=0) as file:
                while count := file.readinto(buffer.data):
                    yield count

    return read


def objects(source: Path, batches: int) -> Reader:
    """Returns reading of the bucket's objects whole, as many at a time as ours reads blocks."""
    folder, count = open_folder(BUCKET_RUN), batches * BATCH // BATCH_ROWS
    names = [layout.activations_file("layer_12", number + 1) for number in range(count)]
    buffers = [np.empty(BATCH_ROWS * WIDTH * 2, np.uint8) for _ in names]

    def read() -> list[int]:
        with ThreadPoolExecutor(READS_IN_FLIGHT) as pool:
            return list(pool.map(lambda name, out: folder.read_into(name, 0, out.data), names, buffers))

    return read


READERS: dict[str, Callable[[Path, int], Reader]] = {
    "ours": ours,
    "unchecked": lambda source, batches: ours(source, batches, "never"),
    "bucket": lambda source, batches: ours(BUCKET_RUN, batches),
    "bucket unchecked": lambda source, batches: ours(BUCKET_RUN, batches, "never"),
    "bucket objects": objects,
    "memory_map": memory_map,
    "datasets": hugging_face_datasets,
    "safe_open": safe_open,
    "sae_lens": sae_lens,
    "in_order": in_order,
}
