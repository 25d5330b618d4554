"""Commits a batch to the run folder, exactly once: tap files, then the rows table, then the record by which it counts.

Every object is create-only. A writer that finds a name taken adopts what is there if it is whole and the same batch's
(`adoption`), so any number of writers, dying anywhere and in any order, leave one consistent batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import msgspec
import numpy as np
from jaxtyping import Float

from pod_job.config.schema import OnNonfinite
from pod_job.errors import JobError
from pod_job.formats import rows_table, statistics
from pod_job.formats.checksummed_json import read_checksummed, with_checksum
from pod_job.formats.quantized import EightBit, Vectors
from pod_job.formats.records import DAMAGED, Count, Record, decode, encode, now, read_bounded
from pod_job.formats.rows_table import Rows
from pod_job.formats.statistics import StatisticsRecord
from pod_job.run_folder import layout
from pod_job.run_folder.adoption import adopted_rows, adopted_tap, create_or_adopt
from pod_job.run_folder.tap_file import tap_parts
from pod_job.storage.checksums import WHOLE_BYTES, Part, Stored, marked, text_of_marks
from pod_job.storage.folder import Folder, NameTaken

MOST_RECORD_BYTES = 512 << 20
"""Size of a commit record: two bytes for each row of each tap, and eight for every 64 KiB of vectors."""


class RowsFile(Record, frozen=True):
    """A batch's rows table, by its name in the run folder."""

    file: str
    rows: Count
    size: Count
    crc32c: str


class RoundingErrors(Record, frozen=True):
    """Relative errors of rows by their rounding to eight bits: the sum of their squares, and the largest."""

    squared_sum: float
    largest: float


class TapFile(Record, frozen=True, omit_defaults=True):
    """A batch's vectors of one tap; `offset` is the first byte of the values in the file, `nonfinite` counts rows.

    `marks` let readers check parts of a file above WHOLE_BYTES (`storage.checksums.marked`); "": not recorded.
    """

    tap: str
    file: str
    rows: Count
    dtype: str
    shape: list[Count]
    offset: Count
    size: Count
    crc32c: str
    nonfinite: Count
    statistics: StatisticsRecord
    rounding: RoundingErrors | None = None
    marks: str = ""


class PromptCounts(Record, frozen=True, omit_defaults=True):
    """Prompts that are not as they came: those left out, by reason, and texts of which a doubled begin token went.

    `dropped_tokens` of the samples' `tokens` are in no prompt; both are 0 where none can be dropped.
    """

    skipped: dict[str, Count] = msgspec.field(default_factory=dict)
    doubled_bos: Count = 0
    tokens: Count = 0
    dropped_tokens: Count = 0


class CommitRecord(Record, frozen=True, omit_defaults=True):
    """commits/batch_000001.json: by it the batch counts, and it describes the batch's files.

    `n_samples` are those whose rows are in it; with those in `prompts.skipped` they are the batch's share of the data.
    """

    format: Literal[2]
    batch: Count
    n_samples: Count
    rows: Count
    files: list[TapFile]
    rows_file: RowsFile
    host: Count
    started: str
    committed: str
    prompts: PromptCounts = PromptCounts()


@dataclass(frozen=True)
class Batch:
    """Batch `number` (from 1) of `n_samples` samples: per tap the vectors [R, D], row i described by row i of `rows`.

    R may be 0: a batch in which everything was excluded is done, too.
    """

    number: int
    n_samples: int
    rows: Rows
    taps: Mapping[str, Vectors]
    prompts: PromptCounts = field(default_factory=PromptCounts)


def commit_batch(folder: Folder, batch: Batch, host: int, on_nonfinite: OnNonfinite = OnNonfinite.flag) -> CommitRecord:
    """Stores the batch, flags set, and returns its commit record: this one, or that of whoever committed it first.

    Raises:
        JobError: files of this batch are there that another run or version must have written; or, before the batch is
            stored and only under `on_nonfinite=fail`, a vector is not finite.
    """
    started, files, flagged = now(), [], batch.rows
    for tap, vectors in batch.taps.items():
        assert len(vectors) == len(batch.rows), f"{tap} has {len(vectors)} vectors for {len(batch.rows)} rows"
        file, norms = _store_tap(folder, batch, tap, on_nonfinite)
        files.append(file)
        sink = statistics.outliers(norms) & (layout.is_residual(tap) & np.isfinite(norms))
        flagged = replace(flagged, sink=flagged.sink | sink, nonfinite=flagged.nonfinite | ~np.isfinite(norms))
    record = CommitRecord(
        format=layout.FORMAT,
        batch=batch.number,
        n_samples=batch.n_samples,
        rows=len(batch.rows),
        files=files,
        rows_file=_store_rows(folder, batch.number, flagged),
        host=host,
        started=started,
        committed=now(),
        prompts=batch.prompts,
    )
    return _store_record(folder, record)


def read_record(folder: Folder, batch: int) -> CommitRecord:
    """Returns the commit record of a batch. JobError where it is missing, damaged or another batch's."""
    name = layout.commit_file(batch)
    url = f"{folder.url}/{name}"
    try:
        data = read_bounded(folder, name, MOST_RECORD_BYTES)
    except FileNotFoundError:
        raise JobError(f"{url}: missing, though it was listed; {layout.REPAIR}") from None
    advice = f"{layout.REPAIR}, without it"
    record = decode(read_checksummed(data, url, f"; {advice}"), CommitRecord, url, f"{DAMAGED}: {advice}")
    if record.batch != batch:
        raise JobError(f"{url}: is the record of batch {record.batch}; {advice}")
    return record


def _store_tap(
    folder: Folder, batch: Batch, tap: str, on_nonfinite: OnNonfinite
) -> tuple[TapFile, Float[np.ndarray, "R"]]:
    """Stores a tap's file; returns what the record says of it, and the norms of its rows."""
    number, vectors = batch.number, batch.taps[tap]
    measured, norms = statistics.measure(vectors)
    if measured.nonfinite and on_nonfinite is OnNonfinite.fail:
        raise JobError(_nonfinite(batch, tap, int(np.flatnonzero(~np.isfinite(norms))[0])))
    name = layout.activations_file(tap, number)
    parts = tap_parts(vectors, tap, number)
    stored, described = create_or_adopt(
        folder, number, name, parts, partial(adopted_tap, folder.url, number, tap, vectors)
    )
    if described is None:
        described = vectors
    else:
        # Another mesh rounds differently in the last bits. The first file stays, and the record describes that one.
        measured, norms = statistics.measure(described)
        parts = tap_parts(described, tap, number)
    file = TapFile(
        tap=tap,
        file=name,
        rows=len(described),
        dtype=str(described.dtype),
        shape=list(described.shape),
        offset=stored.size - memoryview(parts[-1]).nbytes,
        size=stored.size,
        crc32c=stored.crc32c,
        nonfinite=measured.nonfinite,
        statistics=statistics.to_record(measured),
        rounding=_rounding(vectors, norms),
        marks=_marks(parts, stored),
    )
    return file, norms


def _marks(parts: Sequence[Part], stored: Stored) -> str:
    """Returns the marks of a stored file; none where it is small, or these are not its parts."""
    if stored.size <= WHOLE_BYTES:
        return ""
    measured, marks = marked(parts)
    return text_of_marks(marks) if measured == stored else ""


def _rounding(vectors: Vectors, norms: Float[np.ndarray, "R"]) -> RoundingErrors | None:
    """Returns the rounding errors of finite rows; None where they are not known, or nothing was rounded."""
    if not isinstance(vectors, EightBit) or vectors.errors is None:
        return None
    errors = vectors.errors[np.isfinite(norms)].astype(np.float64)
    return RoundingErrors(squared_sum=float(errors @ errors), largest=float(errors.max(initial=0.0)))


def _nonfinite(batch: Batch, tap: str, row: int) -> str:
    rows, dtype = batch.rows, batch.taps[tap].dtype
    where = f"task {rows.task_id[row]}, sample {rows.sample_idx[row]}, position {rows.position[row]}"
    return (
        f"batch {batch.number}, {tap}, row {row} ({where}) has a NaN or an infinity in {dtype}; "
        "use a wider extract.dtype or model.dtype, or store such rows, flagged, with extract.on_nonfinite=flag"
    )


def _store_rows(folder: Folder, number: int, rows: Rows) -> RowsFile:
    name, data = layout.rows_file(number), rows_table.to_parquet(rows)
    stored, _ = create_or_adopt(folder, number, name, [data], partial(adopted_rows, folder.url, number, rows))
    return RowsFile(file=name, rows=len(rows), size=stored.size, crc32c=stored.crc32c)


def _store_record(folder: Folder, record: CommitRecord) -> CommitRecord:
    name = layout.commit_file(record.batch)
    try:
        folder.create(name, [with_checksum(encode(record))])
    except NameTaken:
        earlier = read_record(folder, record.batch)
        if _stored_files(earlier) != _stored_files(record):
            raise JobError(
                f"{folder.url}/{name}: describes other files than are there; the folder was changed"
            ) from None
        return earlier
    return record


def _stored_files(record: CommitRecord) -> list[tuple[str, Stored]]:
    return [(file.file, Stored(file.size, file.crc32c)) for file in (*record.files, record.rows_file)]
