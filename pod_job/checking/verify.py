"""Verifies a run folder, trusting nothing in it: every file is read once from end to end, a piece at a time.

The result is stored in the run as verify/report.json.
"""

import collections
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from pod_job import __version__
from pod_job.checking.batch_files import BatchReport, check_batch, noting, shown
from pod_job.checking.recompute import Deviation
from pod_job.errors import JobError
from pod_job.finishing import merge
from pod_job.finishing.tally import read_plan
from pod_job.formats.records import Count, encode, now, read_file
from pod_job.progress import Progress, no_progress
from pod_job.run_folder import layout, metadata
from pod_job.run_folder.commit import CommitRecord
from pod_job.run_folder.compaction import JoinedFile, open_compacted, read_compaction
from pod_job.run_folder.identity import read_run
from pod_job.run_folder.layout import committed
from pod_job.run_folder.metadata import Metadata
from pod_job.storage.checksums import checksum
from pod_job.storage.folder import Folder
from pod_job.storage.open import open_folder

READS_IN_FLIGHT = 8
VARYING = ("merged", "pod_job_version")
"""Keys of metadata.json that two merges of the same records may give other values."""


class Report(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Counts of what was read, and everything that is wrong.

    `recomputed`: per tap, how far rows are from computing them again. `sound`: the run is complete and has no problem.
    `content`: checksum over the files that were verified; None where the commit records do not make a run.
    """

    url: str
    complete: bool = False
    missing: list[Count] = msgspec.field(default_factory=list)
    batches: Count = 0
    rows: Count = 0
    files: Count = 0
    bytes: Count = 0
    nonfinite_rows: Count = 0
    problems: list[str] = msgspec.field(default_factory=list)
    recomputed: dict[str, Deviation] = msgspec.field(default_factory=dict)
    sound: bool = False
    content: str | None = None

    def conclude(self) -> None:
        """Sets `sound`, once everything was checked."""
        self.sound = self.complete and not self.problems


class StoredReport(Report, kw_only=True):
    """verify/report.json: a report and when it was made."""

    verified: str
    pod_job_version: str


def verify(run_dir: str | Path, progress: Progress = no_progress) -> Report:
    """Checks structure, sizes, checksums, headers, row counts, finite values and metadata.json of a run.

    An unfinished run is checked as far as it goes. Raises JobError where there is no run.
    """
    folder = open_folder(run_dir)
    read_run(folder)
    report = Report(url=folder.url)
    numbers = sorted(committed(folder))
    try:
        joined = read_compaction(folder)
    except JobError:
        joined = None  # check_metadata meets the same error and reports it
    files = open_compacted(folder, joined or [])
    with ThreadPoolExecutor(READS_IN_FLIGHT) as pool:
        checks = pool.map(lambda number: check_batch(folder, files, number), numbers)
        records = add_batches(report, progress(checks, len(numbers), "batches"))
        check_metadata(folder, report, numbers, records)
    for file in joined or []:
        check_joined(folder, file, report)
    check_names(folder, report, joined or [])
    report.conclude()
    return report


def add_batches(report: Report, batches: Iterable[BatchReport]) -> Iterator[CommitRecord]:
    """Adds the batches to the report, and yields their records: each is read only once."""
    for batch in batches:
        report.batches += 1
        report.rows += batch.rows
        report.files += batch.files
        report.bytes += batch.bytes
        report.nonfinite_rows += batch.nonfinite_rows
        report.problems += batch.problems
        if batch.record is not None:
            yield batch.record


def check_metadata(folder: Folder, report: Report, numbers: list[int], records: Iterator[CommitRecord]) -> None:
    """Checks that the records make a complete run, and that metadata.json says what they say. Takes all records."""
    try:
        expected = merge.combine(folder, numbers, records)
        if len(expected.rows_files) < len(numbers):
            return  # the problems name the records that could not be read
        report.complete, report.missing = expected.complete, expected.missing
        report.content = metadata.content_checksum(expected)
        stored = metadata.read_any(folder)
    except JobError as error:
        collections.deque(records, maxlen=0)
        report.problems.append(str(error))
        return
    if problem := merge.contradiction(folder, stored, expected):
        report.problems.append(problem)
        return
    differing = [key for key in sorted(Metadata.__struct_fields__) if getattr(expected, key) != getattr(stored, key)]
    if differing := [key for key in differing if key not in VARYING]:
        report.problems.append(
            f"{folder.url}/{layout.METADATA}: {', '.join(differing)} differ from what the commit records say; "
            f"run `pod-job merge {folder.url}` to write it again"
        )


def check_joined(folder: Folder, file: JoinedFile, report: Report) -> None:
    """Checks what a joined file has besides the files of its batches: a header before them, and nothing after them."""
    name, size = f"{folder.url}/{file.name}", file.header.size + sum(file.sizes)
    with noting(report.problems, name):
        stored = checksum([folder.read(file.name, 0, file.header.size)])
        if folder.read(file.name, size, 1):
            report.problems.append(f"{name}: is longer than the {size} bytes that were written")
        report.bytes += stored.size
        if stored != file.header:
            report.problems.append(f"{name}: header of {shown(stored)}, {layout.COMPACTION} says {shown(file.header)}")


def check_names(folder: Folder, report: Report, joined: Sequence[JoinedFile]) -> None:
    """Reports every file in the folder of activations that no batch of this run owns."""
    plan = read_plan(folder)
    current = {file.name for file in joined}
    old = {file.file_of(batch) for file in joined for batch, _, _ in file.places}
    fix = f"`pod-job merge {folder.url} --compact` removes it"
    for name in folder.names(layout.ACTIVATIONS):
        batch = layout.batch_of_file(name, plan.taps)
        if name in old:
            report.problems.append(f"{folder.url}/{name}: lies in a joined file, too; {fix}")
        elif layout.is_joined(name) and name not in current:
            report.problems.append(f"{folder.url}/{name}: of a compaction that did not finish; {fix}, or uses it")
        elif name != layout.METADATA and name not in current and batch not in range(1, plan.batches + 1):
            report.problems.append(f"{folder.url}/{name}: is not a file of this run; move it away")


def store(report: Report) -> None:
    """Stores the report in the run for later; a run that may only be read is verified all the same.

    Where the run lies is left out: it may be published.
    """
    problems = [problem.replace(f"{report.url}/", "").replace(report.url, "RUN_DIR") for problem in report.problems]
    content = msgspec.structs.asdict(report) | {"url": "", "problems": problems}
    stored = StoredReport(**content, verified=now(), pod_job_version=__version__)
    try:
        open_folder(report.url).replace(layout.VERIFIED, encode(stored, indent=1))
    except Exception as error:
        print(f"note: {report.url}/{layout.VERIFIED} could not be written ({error})", file=sys.stderr)


def read_report(folder: Folder) -> StoredReport | None:
    """Returns what verify found last; None where it never ran. JobError where the file is damaged."""
    try:
        return read_file(folder, layout.VERIFIED, StoredReport, f"run `pod-job verify {folder.url}` again")
    except FileNotFoundError:
        return None
