"""The files of one batch, each read once from end to end, a piece at a time, and held against its commit record."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pod_job.errors import JobError
from pod_job.formats import rows_table
from pod_job.formats.safetensors import TensorSpec, read_header, view_tensor
from pod_job.run_folder.commit import read_record
from pod_job.run_folder.compaction import called
from pod_job.run_folder.tap_file import tap_tensors
from pod_job.storage.checksums import Stored, checksum
from pod_job.storage.folder import Folder, Readable

PIECE_BYTES = 8 << 20
"""Of a file in memory at a time, for each read in flight."""


@dataclass
class Found:
    """The same of one batch, and its record, if that could be read."""

    record: dict[str, Any] | None = None
    rows: int = 0
    files: int = 0
    bytes: int = 0
    nonfinite_rows: int = 0
    problems: list[str] = field(default_factory=list)


def check_batch(folder: Folder, files: Readable, number: int) -> Found:
    """Reads every file of a committed batch; `files` has them by the names in its record."""
    found = Found()
    try:
        found.record = record = read_record(folder, number)
        for entry in record["files"]:
            check_tap(files, entry, found)
        check_rows(files, record, found)
        found.rows = record["rows"]
    except JobError as error:
        found.problems.append(str(error))
    return found


@contextmanager
def noting(problems: list[str], name: str) -> Iterator[None]:
    """Puts down among `problems` why the file of this name could not be read."""
    try:
        yield
    except FileNotFoundError:
        problems.append(f"{name}: missing")
    except JobError as error:
        problems.append(str(error))


def check_tap(folder: Readable, entry: dict[str, Any], found: Found) -> None:
    """Checks one tap file against its entry in the commit record, and counts it in."""
    name = called(folder, entry["file"])
    with noting(found.problems, name):
        header = read_header(lambda start, size: folder.read(entry["file"], start, size), name)
        spec, scales = tap_tensors(header, name)
        bad: list[int] = []
        stored = checksum(pieces(folder, entry["file"], spec, scales, bad))
        found.files += 1
        found.bytes += stored.size
        found.nonfinite_rows += sum(bad)
        said = (entry["dtype"], entry["shape"], entry["offset"], entry["nonfinite"])
        there = (str(spec.dtype), list(spec.shape), spec.start, sum(bad))
        if stored != (recorded := Stored(entry["size"], entry["crc32c"])):
            found.problems.append(f"{name}: {shown(stored)}, its record says {shown(recorded)}")
        elif said != there:
            found.problems.append(f"{name}: has dtype, shape, offset, non-finite rows {there}, its record says {said}")


def pieces(folder: Readable, name: str, spec: TensorSpec, scales: TensorSpec | None, bad: list[int]) -> Iterator[bytes]:
    """The whole file in order; the numbers of non-finite rows in its pieces are appended to `bad`."""
    width = int(np.prod(spec.shape[1:]))
    row_bytes = max(1, width * spec.dtype.itemsize)
    step = max(1, PIECE_BYTES // row_bytes) * row_bytes
    before = folder.read(name, 0, spec.start)
    yield before
    unscaled = np.zeros(0, bool)  # of each row whether a scale is not finite
    if scales is not None and len(before) == spec.start:
        unscaled = np.asarray(~np.isfinite(view_tensor(np.frombuffer(before, np.uint8), scales)).all(axis=1))
    position, row = spec.start, 0
    while piece := folder.read(name, position, step):
        yield piece
        whole = len(piece) // row_bytes * row_bytes  # less only where the file was cut, which its size tells
        values = np.frombuffer(piece, spec.dtype, whole // spec.dtype.itemsize).reshape(-1, width)
        bad.append(broken_rows(values, unscaled[row:]))
        position, row = position + len(piece), row + len(values)


def broken_rows(values: np.ndarray, unscaled: np.ndarray) -> int:
    """How many rows are not finite by themselves or by their scales, which may be of more rows or of fewer."""
    with np.errstate(invalid="ignore"):  # some eight-bit floats warn of a NaN
        broken = np.any(~np.isfinite(values), axis=1)
    broken[: len(unscaled)] |= unscaled[: len(values)]
    return int(np.count_nonzero(broken))


def check_rows(folder: Readable, record: dict[str, Any], found: Found) -> None:
    """Checks the batch's rows table against its entry in the commit record, and counts it in."""
    entry = record["rows_file"]
    name = called(folder, entry["file"])
    try:
        data = folder.read(entry["file"])
        stored, table = checksum([data]), rows_table.from_parquet(data, name)
    except FileNotFoundError:
        found.problems.append(f"{name}: missing")
        return
    found.files += 1
    found.bytes += stored.size
    samples = len(set(zip(table.task_id, table.sample_idx.tolist(), strict=True)))
    if stored != (recorded := Stored(entry["size"], entry["crc32c"])):
        found.problems.append(f"{name}: {shown(stored)}, its record says {shown(recorded)}")
    elif len(table) != record["rows"]:
        found.problems.append(f"{name}: describes {len(table)} rows, the batch has {record['rows']}")
    elif samples > record["n_samples"]:
        found.problems.append(f"{name}: describes {samples} samples, the batch has {record['n_samples']}")


def shown(stored: Stored) -> str:
    return f"{stored.size} bytes with crc32c {stored.crc32c}"
