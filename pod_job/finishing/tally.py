"""Commit records held against the run's identity and themselves, and counted: rows, samples, files, statistics."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from pod_job.errors import JobError
from pod_job.formats import statistics
from pod_job.formats.safetensors import DTYPE_OF
from pod_job.formats.statistics import Tally, TapStatistics
from pod_job.run_folder import layout
from pod_job.run_folder.identity import read_run
from pod_job.storage.folder import Folder


@dataclass(frozen=True)
class Plan:
    """What run.json says a complete run holds."""

    identity: dict[str, Any]
    taps: list[str]
    dtype: str
    samples: int
    batch_samples: int

    @property
    def batches(self) -> int:
        return -(-self.samples // self.batch_samples)

    def samples_in(self, batch: int) -> int:
        return min(self.batch_samples, self.samples - (batch - 1) * self.batch_samples)


@dataclass
class Counted:
    """What has been counted of records so far."""

    rows: int = 0
    samples: int = 0
    batches: list[dict[str, Any]] = field(default_factory=list)
    rows_files: list[dict[str, Any]] = field(default_factory=list)
    statistics: dict[str, Tally] = field(default_factory=dict)
    rounding: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Per tap of eight bits the sum of squared relative errors of rows, and the largest of these."""


def read_plan(folder: Folder) -> Plan:
    """What a complete run holds; JobError where there is none, or its identity does not tell."""
    name, identity = f"{folder.url}/{layout.RUN}", read_run(folder)["identity"]
    try:
        plan = Plan(
            identity,
            taps=[str(tap) for tap in identity["taps"]],
            dtype=str(identity["dtype"]),
            samples=int(identity["tasks"]["samples"]),
            batch_samples=int(identity["save_every_n_samples"]),
        )
        _ = identity["model"]["name"], identity["model"]["hidden_dim"]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise JobError(f"{name}: the identity lacks or garbles {error}") from error
    if plan.dtype not in DTYPE_OF:
        raise JobError(f"{name}: unknown dtype {plan.dtype}; known are {', '.join(DTYPE_OF)}")
    if plan.batch_samples < 1:
        raise JobError(f"{name}: save_every_n_samples is {plan.batch_samples}, it must be at least 1")
    if plan.batches > layout.MAX_BATCHES:
        most = f"more than {layout.MAX_BATCHES:,} batches"
        raise JobError(f"{name}: {plan.samples} samples in batches of {plan.batch_samples} are {most}")
    return plan


def count(folder: Folder, plan: Plan, records: Iterable[dict[str, Any]]) -> Counted:
    """What these records say. Raises JobError where they contradict the plan, themselves or each other."""
    merged = Counted()
    for record in records:
        _add(merged, record, plan, f"{folder.url}/{layout.commit_file(record['batch'])}")
    return merged


def join(merged: Counted, part: Counted, url: str) -> None:
    """Count in the records of the next window."""
    merged.rows += part.rows
    merged.samples += part.samples
    merged.batches += part.batches
    merged.rows_files += part.rows_files
    for tap, tally in part.statistics.items():
        whole = merged.statistics.setdefault(tap, Tally(tally.width))
        _check(whole.width == tally.width, url, f"{tap} is not as wide in later batches as in earlier ones")
        whole.join(tally)
    for tap, (squares, largest) in part.rounding.items():
        before, most = merged.rounding.get(tap, (0.0, 0.0))
        merged.rounding[tap] = before + squares, max(most, largest)


def _add(merged: Counted, record: dict[str, Any], plan: Plan, name: str) -> None:
    """Check one record and count it in."""
    number, rows_file = record["batch"], record["rows_file"]
    taps = [file["tap"] for file in record["files"]]
    if taps != plan.taps:
        raise JobError(f"{name}: has taps {taps}, the run's are {plan.taps}")
    if record["n_samples"] != plan.samples_in(number):
        raise JobError(f"{name}: has {record['n_samples']} samples, the run's data gives {plan.samples_in(number)}")
    _check(rows_file["file"] == layout.rows_file(number), name, "rows_file is another batch's")
    _check(rows_file["rows"] == record["rows"], name, "rows_file has another number of rows")
    for file in record["files"]:
        measured = _measured(file, name)
        _check_file(file, record, plan.dtype, len(measured.mean), name)
        tally = merged.statistics.setdefault(file["tap"], Tally(len(measured.mean)))
        _check(tally.width == len(measured.mean), name, f"{file['tap']} is not as wide as in other batches")
        tally.add(measured)
        if rounding := file.get("rounding"):
            squares, largest = merged.rounding.get(file["tap"], (0.0, 0.0))
            merged.rounding[file["tap"]] = squares + rounding["squared_sum"], max(largest, rounding["largest"])
        kept = {key: file[key] for key in ("rows", "offset", "size", "crc32c")}
        entry = {
            "batch_id": number,
            "layer": file["tap"],
            "file": _bare(file["file"]),
            "n_samples": record["n_samples"],
        }
        merged.batches.append({**entry, **kept})
    merged.rows_files.append({"batch_id": number, **rows_file, "file": _bare(rows_file["file"])})
    merged.rows += record["rows"]
    merged.samples += record["n_samples"]


def _check_file(file: dict[str, Any], record: dict[str, Any], dtype: str, width: int, name: str) -> None:
    tap = file["tap"]
    _check(file["file"] == layout.activations_file(tap, record["batch"]), name, f"the file of {tap} is another batch's")
    _check(file["dtype"] == dtype, name, f"{tap} is {file['dtype']}, the run's dtype is {dtype}")
    _check(file["rows"] == record["rows"], name, f"{tap} has {file['rows']} rows, the batch {record['rows']}")
    _check(
        file["shape"] == [file["rows"], width], name, f"{tap} has shape {file['shape']}, its statistics {width} columns"
    )
    counted = file["statistics"].get("count", 0) + file["nonfinite"]
    _check(counted == file["rows"], name, f"the statistics of {tap} are of {counted} rows")
    expected = file["offset"] + file["rows"] * width * DTYPE_OF[dtype].itemsize
    _check(file["size"] == expected, name, f"{tap} has {file['size']} bytes, its shape gives {expected}")


def _measured(file: dict[str, Any], name: str) -> TapStatistics:
    try:
        measured = statistics.from_json(file["statistics"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise JobError(f"{name}: damaged statistics of {file['tap']} ({error})") from error
    same = len(measured.mean) == len(measured.squared_deviations)
    _check(same, name, f"the statistics of {file['tap']} have means and deviations of different widths")
    return measured


def _check(true: bool, name: str, otherwise: str) -> None:
    if not true:
        raise JobError(f"{name}: {otherwise}; the record is damaged")


def _bare(name: str) -> str:
    """The name as seen from metadata.json, which lies beside the files."""
    return name.removeprefix(layout.ACTIVATIONS)
