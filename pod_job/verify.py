"""Verifies a run folder, trusting nothing in it: every file is read once from end to end, a piece at a time.

The result is kept in the run as verify/report.json. Exit status 1: not whole, or not sound.
"""

import collections
import dataclasses
import json
import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from pod_job import __version__, merge
from pod_job.checking.recompute import Deviation, recompute
from pod_job.command_line import DONE, FAILED, RUN_DIR_HELP, exit_status, make_parser
from pod_job.errors import JobError
from pod_job.run_folder import metadata, rundir
from pod_job.run_folder import rows as rows_table
from pod_job.run_folder.commit import read_record
from pod_job.run_folder.compaction import JoinedFile, called, inside, read_compaction
from pod_job.run_folder.counting import read_plan
from pod_job.run_folder.rundir import committed
from pod_job.run_folder.tap_files import tap_tensors
from pod_job.run_folder.tensorfile import TensorSpec, read_header, view_tensor
from pod_job.storage import Folder, Readable, Stored, checksum, open_folder
from pod_job.watching import Watch, unwatched, watched

READS_IN_FLIGHT = 8
PIECE_BYTES = 8 << 20
"""Of a file in memory at a time, for each read in flight."""
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


@dataclass
class Found:
    """The same of one batch, and its record, if that could be read."""

    record: dict[str, Any] | None = None
    rows: int = 0
    files: int = 0
    bytes: int = 0
    nonfinite_rows: int = 0
    problems: list[str] = field(default_factory=list)


def verify(run_dir: str | Path, watch: Watch = unwatched) -> Report:
    """Structure, sizes, checksums, headers, row counts, finite values and metadata.json of a run.

    An unfinished run is checked as far as it goes. Raises JobError where there is no run.
    """
    folder = open_folder(run_dir)
    rundir.read_run(folder)
    report = Report(folder.url)
    numbers = sorted(committed(folder))
    try:
        joined = read_compaction(folder)
    except JobError:
        joined = None  # check_metadata comes upon it, too, and tells
    files = inside(folder, joined or [])
    with ThreadPoolExecutor(READS_IN_FLIGHT) as pool:
        checked = watch(pool.map(lambda number: check_batch(folder, files, number), numbers), len(numbers), "batches")
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


def check_tap(folder: Readable, entry: dict[str, Any], found: Found) -> None:
    """Checks one tap file against its entry in the commit record, and counts it in."""
    name = called(folder, entry["file"])
    try:
        header = read_header(lambda start, size: folder.read(entry["file"], start, size), name)
        spec, scales = tap_tensors(header, name)
        bad: list[int] = []
        stored = checksum(pieces(folder, entry["file"], spec, scales, bad))
    except FileNotFoundError:
        found.problems.append(f"{name}: missing")
        return
    except JobError as error:
        found.problems.append(str(error))
        return
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
            f"{folder.url}/{rundir.METADATA}: {', '.join(differing)} differ from what the commit records say; "
            f"run `python -m pod_job.merge {folder.url}` to write it anew"
        )


def check_joined(folder: Folder, file: JoinedFile, report: Report) -> None:
    """What is in a joined file besides the files of its batches: a header before them, and nothing after them."""
    name, size = f"{folder.url}/{file.name}", file.header.size + sum(file.sizes)
    try:
        there = checksum([folder.read(file.name, 0, file.header.size)])
        if folder.read(file.name, size, 1):
            report.problems.append(f"{name}: is longer than the {size} bytes that were written")
    except FileNotFoundError:
        report.problems.append(f"{name}: missing")
        return
    except JobError as error:
        report.problems.append(str(error))
        return
    report.bytes += there.size
    if there != file.header:
        report.problems.append(f"{name}: header of {shown(there)}, {rundir.COMPACTION} says {shown(file.header)}")


def check_names(folder: Folder, report: Report, joined: Sequence[JoinedFile]) -> None:
    """Whether the folder of activations holds anything that no batch of this run owns."""
    plan = read_plan(folder)
    ours = {file.name for file in joined}
    old = {file.file_of(batch) for file in joined for batch, _, _ in file.places}
    again = f"`python -m pod_job.merge {folder.url} --compact` removes it"
    for name in folder.names(rundir.ACTIVATIONS):
        batch = rundir.batch_of_file(name, plan.taps)
        if name in old:
            report.problems.append(f"{folder.url}/{name}: lies in a joined file, too; {again}")
        elif rundir.is_joined(name) and name not in ours:
            report.problems.append(f"{folder.url}/{name}: of a compaction that did not finish; {again}, or uses it")
        elif name != rundir.METADATA and name not in ours and batch not in range(1, plan.batches + 1):
            report.problems.append(f"{folder.url}/{name}: is not a file of this run; move it away")


def shown(stored: Stored) -> str:
    return f"{stored.size} bytes with crc32c {stored.crc32c}"


def text(report: Report) -> str:
    """The report for people."""
    state = "whole" if report.complete else f"unfinished, {len(report.missing)} batches missing"
    lines = [
        f"{report.url}: {state}",
        f"{report.batches} batches, {report.rows:,} rows, {report.files} files, {report.bytes:,} bytes read",
    ]
    if report.nonfinite_rows:
        lines.append(f"{report.nonfinite_rows} vectors have a NaN or an infinity")
    for tap, deviation in report.recomputed.items():
        lines.append(f"{tap}: {deviation}")
    lines += [f"problem: {problem}" for problem in report.problems]
    return "\n".join([*lines, "sound" if report.sound else "NOT SOUND"])


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    examples = ["runs/first", "gs://my-bucket/run --json", "gs://my-bucket/run --recompute 64 tasks.path=moved.json"]
    parser = make_parser("verify", __doc__ or "", examples)
    parser.add_argument("run_dir", metavar="RUN_DIR", help=RUN_DIR_HELP)
    parser.add_argument("--recompute", type=int, default=0, metavar="N", help="compute N random rows anew")
    parser.add_argument("--seed", type=int, default=0, help="chooses the rows")
    parser.add_argument("--json", action="store_true", help="the report as JSON on stdout")
    parser.add_argument("overrides", nargs="*", help="where inputs were moved: model.path=... tasks.path=...")
    options = parser.parse_intermixed_args(argv)
    return exit_status(lambda: verify_and_tell(options))


def verify_and_tell(options: Namespace) -> int:
    report = verify(options.run_dir, watched)
    if options.recompute and report.sound:
        report.recomputed = recompute(options.run_dir, options.recompute, options.seed, options.overrides)
        far = {tap: deviation for tap, deviation in report.recomputed.items() if deviation.too_far}
        report.problems += [f"{report.url}: {tap}: {deviation}" for tap, deviation in far.items()]
    record(report)
    print(json.dumps(to_json(report), indent=1) if options.json else text(report))
    return DONE if report.sound else FAILED


def record(report: Report) -> None:
    """Keeps the report in the run, for whoever looks later; a run that may only be read is verified all the same."""
    stamped = {"verified": datetime.now(UTC).isoformat(timespec="seconds"), "pod_job_version": __version__}
    try:
        open_folder(report.url).replace(rundir.VERIFIED, json.dumps(stamped | to_json(report), indent=1).encode())
    except Exception as error:
        print(f"note: {report.url}/{rundir.VERIFIED} could not be written ({error})", file=sys.stderr)


def to_json(report: Report) -> dict[str, Any]:
    return dataclasses.asdict(report) | {"sound": report.sound}


if __name__ == "__main__":
    sys.exit(main())
