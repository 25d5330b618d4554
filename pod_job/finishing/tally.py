"""Commit records checked against the run's identity and themselves, and added up: rows, samples, files, statistics."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from pod_job.errors import JobError
from pod_job.formats import statistics
from pod_job.formats.safetensors import DTYPE_OF
from pod_job.formats.statistics import Tally, TapStatistics
from pod_job.run_folder import layout
from pod_job.run_folder.commit import CommitRecord, TapFile
from pod_job.run_folder.identity import Identity, check_holds_vectors, read_run
from pod_job.run_folder.metadata import BatchEntry, RowsEntry
from pod_job.storage.folder import Folder


@dataclass(frozen=True)
class Plan:
    """The content of a complete run, by its identity."""

    identity: Identity

    @property
    def taps(self) -> list[str]:
        return self.identity.taps

    @property
    def batches(self) -> int:
        return -(-self.identity.tasks.samples // self.identity.save_every_n_samples)

    def samples_in(self, batch: int) -> int:
        samples, per_batch = self.identity.tasks.samples, self.identity.save_every_n_samples
        return min(per_batch, samples - (batch - 1) * per_batch)


@dataclass
class RunTally:
    """Sums over the records added so far.

    `rounding`: per tap of eight bits the sum of squared relative errors of rows, and the largest of these errors.
    """

    rows: int = 0
    samples: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    doubled_bos: int = 0
    tokens: int = 0
    dropped_tokens: int = 0
    batches: list[BatchEntry] = field(default_factory=list)
    rows_files: list[RowsEntry] = field(default_factory=list)
    statistics: dict[str, Tally] = field(default_factory=dict)
    rounding: dict[str, tuple[float, float]] = field(default_factory=dict)


def read_plan(folder: Folder) -> Plan:
    """Returns what a complete run holds.

    Raises:
        JobError: there is no run, it is the run of a training, or its identity makes no sense.
    """
    run = read_run(folder)
    check_holds_vectors(folder, run)
    plan, name, identity = Plan(run.identity), f"{folder.url}/{layout.RUN}", run.identity
    if identity.dtype not in DTYPE_OF:
        raise JobError(f"{name}: unknown dtype {identity.dtype}; known are {', '.join(DTYPE_OF)}")
    if plan.batches > layout.MAX_BATCHES:
        samples, per_batch = identity.tasks.samples, identity.save_every_n_samples
        raise JobError(
            f"{name}: {samples} samples in batches of {per_batch} are more than {layout.MAX_BATCHES:,} batches"
        )
    return plan


def tally_records(folder: Folder, plan: Plan, records: Iterable[CommitRecord]) -> RunTally:
    """Returns the sums over these records. JobError where they contradict the plan, themselves or each other."""
    tally = RunTally()
    for record in records:
        add_record(tally, record, plan, f"{folder.url}/{layout.commit_file(record.batch)}")
    return tally


def join(tally: RunTally, later: RunTally, url: str) -> None:
    """Adds the sums of the next window to the tally."""
    tally.rows += later.rows
    tally.samples += later.samples
    tally.skipped.update(later.skipped)
    tally.doubled_bos += later.doubled_bos
    tally.tokens += later.tokens
    tally.dropped_tokens += later.dropped_tokens
    tally.batches += later.batches
    tally.rows_files += later.rows_files
    for tap, measured in later.statistics.items():
        total = tally.statistics.setdefault(tap, Tally(measured.width))
        _check(total.width == measured.width, url, f"{tap} is not as wide in later batches as in earlier ones")
        total.join(measured)
    for tap, (squares, largest) in later.rounding.items():
        _add_rounding(tally, tap, squares, largest)


def add_record(tally: RunTally, record: CommitRecord, plan: Plan, name: str) -> None:
    """Checks one record and adds it. JobError, with the record's `name`, where it is damaged."""
    taps, rows_file = [file.tap for file in record.files], record.rows_file
    if taps != plan.taps:
        raise JobError(f"{name}: has taps {taps}, the run's are {plan.taps}")
    samples, expected = record.n_samples + sum(record.prompts.skipped.values()), plan.samples_in(record.batch)
    if samples != expected:
        raise JobError(f"{name}: has {samples} samples, the run's data gives {expected}")
    _check(rows_file.file == layout.rows_file(record.batch), name, "rows_file is another batch's")
    _check(rows_file.rows == record.rows, name, "rows_file has another number of rows")
    for tap, file in zip(plan.taps, record.files, strict=True):
        measured = _measured(file, name)
        _check_file(file, record, plan.identity.dtype, len(measured.mean), name)
        total = tally.statistics.setdefault(tap, Tally(len(measured.mean)))
        _check(total.width == len(measured.mean), name, f"{tap} is not as wide as in other batches")
        total.add(measured)
        if file.rounding is not None:
            _add_rounding(tally, tap, file.rounding.squared_sum, file.rounding.largest)
        tally.batches.append(
            BatchEntry(
                record.batch,
                tap,  # the plan's: the entries of all batches share one string
                _bare(file.file),
                record.n_samples,
                file.rows,
                file.offset,
                file.size,
                file.crc32c,
            )
        )
    bare = _bare(rows_file.file)
    tally.rows_files.append(RowsEntry(record.batch, bare, rows_file.rows, rows_file.size, rows_file.crc32c))
    tally.rows += record.rows
    tally.samples += record.n_samples
    tally.skipped.update(record.prompts.skipped)
    tally.doubled_bos += record.prompts.doubled_bos
    tally.tokens += record.prompts.tokens
    tally.dropped_tokens += record.prompts.dropped_tokens


def _add_rounding(tally: RunTally, tap: str, squares: float, largest: float) -> None:
    before, most = tally.rounding.get(tap, (0.0, 0.0))
    tally.rounding[tap] = before + squares, max(most, largest)


def _check_file(file: TapFile, record: CommitRecord, dtype: str, width: int, name: str) -> None:
    tap = file.tap
    _check(file.file == layout.activations_file(tap, record.batch), name, f"the file of {tap} is another batch's")
    _check(file.dtype == dtype, name, f"{tap} is {file.dtype}, the run's dtype is {dtype}")
    _check(file.rows == record.rows, name, f"{tap} has {file.rows} rows, the batch {record.rows}")
    _check(file.shape == [file.rows, width], name, f"{tap} has shape {file.shape}, its statistics {width} columns")
    measured_rows = file.statistics.count + file.nonfinite
    _check(measured_rows == file.rows, name, f"the statistics of {tap} are of {measured_rows} rows")
    expected = file.offset + file.rows * width * DTYPE_OF[dtype].itemsize
    _check(file.size == expected, name, f"{tap} has {file.size} bytes, its shape gives {expected}")


def _measured(file: TapFile, name: str) -> TapStatistics:
    try:
        return statistics.from_record(file.statistics)
    except (ValueError, OverflowError) as error:
        raise JobError(f"{name}: damaged statistics of {file.tap} ({error})") from error


def _check(true: bool, name: str, otherwise: str) -> None:
    if not true:
        raise JobError(f"{name}: {otherwise}; the record is damaged")


def _bare(name: str) -> str:
    """Returns the name as seen from metadata.json, which lies beside the files."""
    return name.removeprefix(layout.ACTIVATIONS)
