"""Checks the files of one batch against its commit record; each is read once from end to end, a piece at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from pod_job.errors import JobError
from pod_job.formats import rows_table
from pod_job.formats.safetensors import Header, TensorSpec, read_header, view_tensor
from pod_job.run_folder import layout
from pod_job.run_folder.commit import CommitRecord, RowsFile, TapFile, read_record
from pod_job.run_folder.compaction import full_name
from pod_job.run_folder.tap_file import tap_tensors
from pod_job.storage.checksums import Stored, checksum, marked, text_of_marks
from pod_job.storage.folder import Folder, Readable
from pod_job.terminal import one_line

LARGE_ROWS = 1 << 20
"""Rows of a table that is read only if the vectors of its batch are sound: a few kilobytes can hold millions."""
PIECE_BYTES = 8 << 20
"""Bytes of a file in memory at a time, for each read in flight."""


@dataclass
class BatchReport:
    """Counts and problems of one batch; `record` is None where it could not be read."""

    record: CommitRecord | None = None
    rows: int = 0
    files: int = 0
    bytes: int = 0
    nonfinite_rows: int = 0
    problems: list[str] = field(default_factory=list)


def check_batch(folder: Folder, files: Readable, number: int) -> BatchReport:
    """Reads every file of a committed batch; `files` has them by the names in its record."""
    report = BatchReport()
    try:
        report.record = record = read_record(folder, number)
    except JobError as error:
        report.problems.append(str(error))
        return report
    for file in record.files:
        found = len(report.problems)
        check_tap(files, file, report)
        add_fix(report, found, repair(files, number, file.file))
    found = len(report.problems)
    check_rows(files, record, report)
    add_fix(report, found, repair(files, number, record.rows_file.file))
    report.rows = record.rows
    return report


def repair(files: Readable, number: int, name: str) -> str:
    """Returns what to do about a damaged file of a batch: without its record it is made again and committed again."""
    if full_name(files, name) != f"{files.url}/{name}":
        return "copy the run again"  # in a joined file it cannot be made again by itself
    return f"{layout.REPAIR}, without it, {layout.commit_file(number)} and {layout.METADATA}"


def add_fix(report: BatchReport, found: int, fix: str) -> None:
    """Ends the problems from number `found` on with what to do."""
    report.problems[found:] = [f"{problem}; {fix}" for problem in report.problems[found:]]


@contextmanager
def noting(problems: list[str], name: str) -> Iterator[None]:
    """Adds to `problems` why the file of this name could not be read."""
    try:
        yield
    except FileNotFoundError:
        problems.append(f"{name}: missing")
    except JobError as error:
        problems.append(str(error))


def check_tap(folder: Readable, file: TapFile, report: BatchReport) -> None:
    """Checks one tap file against the commit record, and counts it in the report."""
    name = full_name(folder, file.file)
    with noting(report.problems, name):
        header = read_header(lambda start, size: folder.read(file.file, start, size), name)
        spec, scales = tap_tensors(header, name)
        nonfinite: list[int] = []
        stored, marks = marked(pieces(folder, file, spec, scales, nonfinite))
        report.files += 1
        report.bytes += stored.size
        report.nonfinite_rows += sum(nonfinite)
        recorded = (file.dtype, file.shape, file.offset, file.nonfinite)
        stored_values = (str(spec.dtype), list(spec.shape), spec.start, sum(nonfinite))
        if problem := differing(stored, file) or misplaced(header, file):
            report.problems.append(f"{name}: {problem}")
        elif file.marks not in ("", text_of_marks(marks)):
            report.problems.append(f"{name}: is whole, but the marks in its record are of other content")
        elif recorded != stored_values:
            report.problems.append(
                f"{name}: has dtype, shape, offset, non-finite rows {stored_values}, its record says {recorded}"
            )


def misplaced(header: Header, file: TapFile) -> str:
    """Returns what a tap file by its own header is that its record says is another's; "" where both agree."""
    number, described = layout.batch_of_file(file.file, [file.tap]), header.metadata
    if described.get("tap", file.tap) == file.tap and described.get("batch", str(number)) == str(number):
        return ""
    return one_line(
        f"is by its header of {described.get('tap')}, batch {described.get('batch')}, its record says {file.tap}, "
        f"batch {number}"
    )


def pieces(
    folder: Readable, file: TapFile, spec: TensorSpec, scales: TensorSpec | None, nonfinite: list[int]
) -> Iterator[bytes]:
    """Yields the file in order, of one that is longer than its record says one byte more than that.

    Appends the number of non-finite rows in each piece to `nonfinite`.
    """
    width = int(np.prod(spec.shape[1:]))
    row_bytes = max(1, width * spec.dtype.itemsize)
    step = max(1, PIECE_BYTES // row_bytes) * row_bytes
    before = folder.read(file.file, 0, min(spec.start, file.size + 1))
    yield before
    unscaled = np.zeros(0, bool)  # of each row whether a scale is not finite
    if scales is not None and len(before) == spec.start:
        unscaled = np.asarray(~np.isfinite(view_tensor(np.frombuffer(before, np.uint8), scales)).all(axis=1))
    position, row = spec.start, 0
    while piece := folder.read(file.file, position, min(step, file.size + 1 - position)):
        yield piece
        row_aligned = len(piece) // row_bytes * row_bytes  # less only where the file was cut, which its size shows
        values = np.frombuffer(piece, spec.dtype, row_aligned // spec.dtype.itemsize).reshape(-1, width)
        nonfinite.append(nonfinite_rows(values, unscaled[row:]))
        position, row = position + len(piece), row + len(values)


def nonfinite_rows(values: np.ndarray, unscaled: np.ndarray) -> int:
    """Returns how many rows are not finite by themselves or by their scales, which may be of more rows or of fewer."""
    with np.errstate(invalid="ignore"):  # some eight-bit floats warn of a NaN
        nonfinite = np.any(~np.isfinite(values), axis=1)
    nonfinite[: len(unscaled)] |= unscaled[: len(values)]
    return int(np.count_nonzero(nonfinite))


def check_rows(folder: Readable, record: CommitRecord, report: BatchReport) -> None:
    """Checks the batch's rows table against the commit record, and counts it in the report."""
    file = record.rows_file
    name = full_name(folder, file.file)
    with noting(report.problems, name):
        data = folder.read(file.file, 0, file.size + 1)
        stored = checksum([data])
        report.files += 1
        report.bytes += stored.size
        if problem := differing(stored, file):
            report.problems.append(f"{name}: {problem}")
            return
        if record.rows > LARGE_ROWS and report.problems:
            return  # so many rows are not there: they would be memory for nothing
        table = rows_table.from_parquet(data, name, record.rows)
        samples = len(set(zip(table.task_id, table.sample_idx.tolist(), strict=True)))
        if samples > record.n_samples:
            report.problems.append(f"{name}: describes {samples} samples, the batch has {record.n_samples}")


def differing(stored: Stored, file: TapFile | RowsFile) -> str:
    """Returns how a file differs in size or checksum from its record; "" where it does not."""
    recorded = Stored(file.size, file.crc32c)
    return "" if stored == recorded else f"{shown(stored)}, its record says {shown(recorded)}"


def shown(stored: Stored) -> str:
    return f"{stored.size} bytes with crc32c {stored.crc32c}"
