"""Verifies a run folder, trusting nothing in it: every file is read once from end to end, a piece at a time.

The result is kept in the run as verify/report.json. Exit status 1: not whole, or not sound.
"""

import collections
import dataclasses
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pod_job import __version__
from pod_job.checking.batch_files import Found, check_batch, noting, shown
from pod_job.checking.recompute import Deviation
from pod_job.errors import JobError
from pod_job.finishing import merge
from pod_job.finishing.tally import read_plan
from pod_job.progress import Progress, no_progress
from pod_job.run_folder import layout, metadata
from pod_job.run_folder.compaction import JoinedFile, inside, read_compaction
from pod_job.run_folder.identity import read_run
from pod_job.run_folder.layout import committed
from pod_job.storage.checksums import checksum
from pod_job.storage.folder import Folder
from pod_job.storage.open import open_folder

READS_IN_FLIGHT = 8
VARYING = ("merged", "pod_job_version")
"""Keys of metadata.json that two merges of the same records may give other values."""


@dataclass
class Report:
    """What was read, and everything that is wrong. `recomputed`: per tap, how far rows are from computing them anew."""

    url: str
    complete: bool = False
    missing: list[int] = field(default_factory=list)
    batches: int = 0
    rows: int = 0
    files: int = 0
    bytes: int = 0
    nonfinite_rows: int = 0
    problems: list[str] = field(default_factory=list)
    recomputed: dict[str, Deviation] = field(default_factory=dict)

    @property
    def sound(self) -> bool:
        return self.complete and not self.problems


def verify(run_dir: str | Path, progress: Progress = no_progress) -> Report:
    """Structure, sizes, checksums, headers, row counts, finite values and metadata.json of a run.

    An unfinished run is checked as far as it goes. Raises JobError where there is no run.
    """
    folder = open_folder(run_dir)
    read_run(folder)
    report = Report(folder.url)
    numbers = sorted(committed(folder))
    try:
        joined = read_compaction(folder)
    except JobError:
        joined = None  # check_metadata comes upon it, too, and tells
    files = inside(folder, joined or [])
    with ThreadPoolExecutor(READS_IN_FLIGHT) as pool:
        checked = progress(
            pool.map(lambda number: check_batch(folder, files, number), numbers), len(numbers), "batches"
        )
        check_metadata(folder, report, numbers, counted(report, checked))
    for file in joined or []:
        check_joined(folder, file, report)
    check_names(folder, report, joined or [])
    return report


def counted(report: Report, checked: Iterable[Found]) -> Iterator[dict[str, Any]]:
    """Counts the batches into the report, and gives their records on: each is read only once."""
    for found in checked:
        report.batches += 1
        report.rows += found.rows
        report.files += found.files
        report.bytes += found.bytes
        report.nonfinite_rows += found.nonfinite_rows
        report.problems += found.problems
        if found.record is not None:
            yield found.record


def check_metadata(folder: Folder, report: Report, numbers: list[int], records: Iterator[dict[str, Any]]) -> None:
    """Whether the records make a whole run, and whether metadata.json is what they say. Goes through all records."""
    try:
        truth = json.loads(metadata.render(merge.combine(folder, numbers, records)))
        if len(truth["rows_files"]) < len(numbers):
            return  # the problems name the records that could not be read
        report.complete, report.missing = truth["complete"], truth["missing"]
        there = metadata.read_any(folder)
    except JobError as error:
        collections.deque(records, maxlen=0)
        report.problems.append(str(error))
        return
    differing = [key for key in sorted(truth.keys() | there.keys()) if truth.get(key) != there.get(key)]
    if differing := [key for key in differing if key not in VARYING]:
        report.problems.append(
            f"{folder.url}/{layout.METADATA}: {', '.join(differing)} differ from what the commit records say; "
            f"run `pod-job merge {folder.url}` to write it anew"
        )


def check_joined(folder: Folder, file: JoinedFile, report: Report) -> None:
    """What is in a joined file besides the files of its batches: a header before them, and nothing after them."""
    name, size = f"{folder.url}/{file.name}", file.header.size + sum(file.sizes)
    with noting(report.problems, name):
        there = checksum([folder.read(file.name, 0, file.header.size)])
        if folder.read(file.name, size, 1):
            report.problems.append(f"{name}: is longer than the {size} bytes that were written")
        report.bytes += there.size
        if there != file.header:
            report.problems.append(f"{name}: header of {shown(there)}, {layout.COMPACTION} says {shown(file.header)}")


def check_names(folder: Folder, report: Report, joined: Sequence[JoinedFile]) -> None:
    """Whether the folder of activations holds anything that no batch of this run owns."""
    plan = read_plan(folder)
    ours = {file.name for file in joined}
    old = {file.file_of(batch) for file in joined for batch, _, _ in file.places}
    again = f"`pod-job merge {folder.url} --compact` removes it"
    for name in folder.names(layout.ACTIVATIONS):
        batch = layout.batch_of_file(name, plan.taps)
        if name in old:
            report.problems.append(f"{folder.url}/{name}: lies in a joined file, too; {again}")
        elif layout.is_joined(name) and name not in ours:
            report.problems.append(f"{folder.url}/{name}: of a compaction that did not finish; {again}, or uses it")
        elif name != layout.METADATA and name not in ours and batch not in range(1, plan.batches + 1):
            report.problems.append(f"{folder.url}/{name}: is not a file of this run; move it away")


def record(report: Report) -> None:
    """Keeps the report in the run, for whoever looks later; a run that may only be read is verified all the same."""
    stamped = {"verified": datetime.now(UTC).isoformat(timespec="seconds"), "pod_job_version": __version__}
    try:
        open_folder(report.url).replace(layout.VERIFIED, json.dumps(stamped | to_json(report), indent=1).encode())
    except Exception as error:
        print(f"note: {report.url}/{layout.VERIFIED} could not be written ({error})", file=sys.stderr)


def to_json(report: Report) -> dict[str, Any]:
    return dataclasses.asdict(report) | {"sound": report.sound}
