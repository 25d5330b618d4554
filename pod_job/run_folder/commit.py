"""One batch into the run folder, exactly once: tap files, then the rows table, then the record that makes it count.

Every object is create-only. A writer that finds a name taken adopts what is there after checking that it is the same
batch's, so any number of writers, dying anywhere and in any order, leave one consistent batch.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
from jaxtyping import Float

from pod_job.config.schema import OnNonfinite
from pod_job.errors import JobError
from pod_job.formats import rows_table, statistics
from pod_job.formats.checksummed_json import open_sealed, seal
from pod_job.formats.quantized import EightBit, Vectors
from pod_job.formats.rows_table import Rows
from pod_job.run_folder import layout
from pod_job.run_folder.tap_file import tap_parts, vectors_in
from pod_job.storage.checksums import checksum
from pod_job.storage.folder import Folder, NameTaken


@dataclass(frozen=True)
class Batch:
    """Batch `number` (from 1) of `n_samples` samples: per tap the vectors [R, D], row i described by row i of `rows`.

    R may be 0: a batch in which everything was excluded is done, too.
    """

    number: int
    n_samples: int
    rows: Rows
    taps: Mapping[str, Vectors]


def commit_batch(
    folder: Folder, batch: Batch, host: int, on_nonfinite: OnNonfinite = OnNonfinite.flag
) -> dict[str, Any]:
    """Store the batch, flags set, and return its commit record: ours, or that of whoever committed it first.

    Raises JobError where files of this batch are there that another run or version must have written, and under
    `on_nonfinite=fail`, before it is stored, for a vector that is not finite.
    """
    started, files, flagged = _now(), [], batch.rows
    for tap, vectors in batch.taps.items():
        assert len(vectors) == len(batch.rows), f"{tap} has {len(vectors)} vectors for {len(batch.rows)} rows"
        file, norms = _store_tap(folder, batch, tap, on_nonfinite)
        files.append(file)
        sink = statistics.outliers(norms) & (_is_residual(tap) & np.isfinite(norms))
        flagged = replace(flagged, sink=flagged.sink | sink, nonfinite=flagged.nonfinite | ~np.isfinite(norms))
    record = {
        "format": layout.FORMAT,
        "batch": batch.number,
        "n_samples": batch.n_samples,
        "rows": len(batch.rows),
        "files": files,
        "rows_file": _store_rows(folder, batch.number, flagged),
        "host": host,
        "started": started,
        "committed": _now(),
    }
    return _store_record(folder, record)


def read_record(folder: Folder, batch: int) -> dict[str, Any]:
    """The commit record of a batch, as `commit_batch` returned it. JobError where it is not one."""
    name = layout.commit_file(batch)
    try:
        record = open_sealed(folder.read(name), f"{folder.url}/{name}")
    except FileNotFoundError:
        raise JobError(f"{folder.url}/{name}: missing, though it was listed") from None
    if record.get("batch") != batch or record.get("format") != layout.FORMAT:
        raise JobError(f"{folder.url}/{name}: not the record of batch {batch} in format {layout.FORMAT}")
    if wrong := wrong_fields(record, _RECORD_FIELDS) or wrong_fields(record["rows_file"], _ROWS_FIELDS):
        raise JobError(f"{folder.url}/{name}: damaged: {wrong} missing or of another type")
    for entry in record["files"]:
        if wrong := wrong_fields(entry, _FILE_FIELDS):
            raise JobError(f"{folder.url}/{name}: damaged: {wrong} of a file missing or of another type")
    return record


_RECORD_FIELDS = {"n_samples": int, "rows": int, "files": list, "rows_file": dict, "host": int}
_ROWS_FIELDS = {"file": str, "rows": int, "size": int, "crc32c": str}
_FILE_FIELDS = {
    **_ROWS_FIELDS,
    **{"tap": str, "dtype": str, "shape": list, "offset": int, "nonfinite": int, "statistics": dict},
}


def wrong_fields(entry: Any, fields: dict[str, type]) -> str:
    """The names of those `fields` that a table read from JSON lacks or has in another type."""
    table = entry if isinstance(entry, dict) else {}
    return ", ".join(name for name, kind in fields.items() if not isinstance(table.get(name), kind))


def _is_residual(tap: str) -> bool:
    """Whether the tap is of the residual stream, where attention sinks stand out; other sites have other outliers."""
    return "." not in tap or tap.rpartition(".")[2].startswith("resid")


def _store_tap(
    folder: Folder, batch: Batch, tap: str, on_nonfinite: OnNonfinite
) -> tuple[dict[str, Any], Float[np.ndarray, "R"]]:
    """The tap file's entry in the record, and the norms of its rows."""
    number, vectors = batch.number, batch.taps[tap]
    measured, norms = statistics.measure(vectors)
    if measured.nonfinite and on_nonfinite is OnNonfinite.fail:
        raise JobError(_nonfinite(batch, tap, int(np.flatnonzero(~np.isfinite(norms))[0])))
    name = layout.activations_file(tap, number)
    parts = tap_parts(vectors, tap, number)
    try:
        stored, kept = folder.create(name, parts), vectors
    except NameTaken as taken:
        # Another mesh rounds differently in the last bits. The first file stays, and the record describes that one.
        stored, kept = taken.stored, _adopt_tap(folder, name, vectors)
        measured, norms = statistics.measure(kept)
    entry = {
        "tap": tap,
        "file": name,
        "rows": len(kept),
        "dtype": str(kept.dtype),
        "shape": list(kept.shape),
        "offset": stored.size - memoryview(parts[-1]).nbytes,
        "size": stored.size,
        "crc32c": stored.crc32c,
        "nonfinite": measured.nonfinite,
        "statistics": statistics.to_json(measured),
    }
    if isinstance(vectors, EightBit):
        entry["rounding"] = _rounding(vectors, norms)
    return entry, norms


def _rounding(vectors: EightBit, norms: Float[np.ndarray, "R"]) -> dict[str, Any] | None:
    """How far eight bits are off: the sum over finite rows of squared relative errors, and the largest of them."""
    if vectors.errors is None:
        return None
    errors = vectors.errors[np.isfinite(norms)].astype(np.float64)
    return {"squared_sum": float(errors @ errors), "largest": float(errors.max(initial=0.0))}


def _nonfinite(batch: Batch, tap: str, row: int) -> str:
    rows, dtype = batch.rows, batch.taps[tap].dtype
    where = f"task {rows.task_id[row]}, sample {rows.sample_idx[row]}, position {rows.position[row]}"
    return (
        f"batch {batch.number}, {tap}, row {row} ({where}) has a NaN or an infinity in {dtype}; "
        "use a wider extract.dtype or model.dtype, or store such rows, flagged, with extract.on_nonfinite=flag"
    )


def _adopt_tap(folder: Folder, name: str, ours: Vectors) -> Vectors:
    there = vectors_in(folder.read(name), f"{folder.url}/{name}")
    if (there.dtype, there.shape) != (ours.dtype, ours.shape):
        raise JobError(
            f"{folder.url}/{name}: holds {there.dtype} {list(there.shape)}, this run makes {ours.dtype} "
            f"{list(ours.shape)}; another run wrote it: use another storage.run_dir"
        )
    return there


def _store_rows(folder: Folder, number: int, rows: Rows) -> dict[str, Any]:
    name, data = layout.rows_file(number), rows_table.to_parquet(rows)
    try:
        stored = folder.create(name, [data])
    except NameTaken:
        # The table carries its time, and its size may vary with the pyarrow version: what must agree is the rows.
        data = folder.read(name)
        stored = checksum([data])
        if not rows_table.from_parquet(data, f"{folder.url}/{name}").describes_same(rows):
            raise JobError(
                f"{folder.url}/{name}: describes other rows than this run's batch {number}; "
                "another run wrote it: use another storage.run_dir"
            ) from None
    return {"file": name, "rows": len(rows), "size": stored.size, "crc32c": stored.crc32c}


def _store_record(folder: Folder, record: dict[str, Any]) -> dict[str, Any]:
    name = layout.commit_file(record["batch"])
    try:
        folder.create(name, [seal(json.dumps(record, separators=(",", ":")))])
    except NameTaken:
        earlier = read_record(folder, record["batch"])
        if _content(earlier) != _content(record):
            raise JobError(
                f"{folder.url}/{name}: describes other files than are there; the folder was changed"
            ) from None
        return earlier
    return record


def _content(record: dict[str, Any]) -> list[tuple[str, int, str]]:
    return [(file["file"], file["size"], file["crc32c"]) for file in (*record["files"], record["rows_file"])]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
