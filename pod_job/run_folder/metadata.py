"""The text of `activations/metadata.json`: written for people and programs, and read without trusting it."""

import json
import warnings
from collections.abc import Mapping
from typing import Any

from pod_job.errors import JobError
from pod_job.formats.checksummed_json import open_sealed
from pod_job.formats.safetensors import DTYPE_OF
from pod_job.run_folder import layout
from pod_job.storage.folder import Folder


def render(metadata: dict[str, Any]) -> str:
    """JSON with one file per line: a person can read and grep it, and 400,000 files still take only seconds."""
    lines = []
    for key, value in metadata.items():
        text = json.dumps(value)
        if key in ("rows_files", "batches", "joined"):
            text = "[\n  " + ",\n  ".join(map(json.dumps, value)) + "\n ]"
        lines.append(f" {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def read(folder: Folder) -> dict[str, Any]:
    """The content of metadata.json. JobError where it is missing or damaged; a warning where the run is unfinished."""
    metadata = read_any(folder)
    if not metadata["complete"]:
        missing, total = len(metadata["missing"]), metadata["total_batches"]
        warnings.warn(f"{folder.url}: unfinished run, {missing} of {total} batches are missing", stacklevel=3)
    return metadata


def read_any(folder: Folder) -> dict[str, Any]:
    """`read`, without the warning: for those who look whether the run is finished."""
    name = f"{folder.url}/{layout.METADATA}"
    anew = f"; run `pod-job merge {folder.url}` to write it anew"
    try:
        metadata = open_sealed(folder.read(layout.METADATA), name, anew)
    except FileNotFoundError:
        raise JobError(f"{name}: missing; run `pod-job merge {folder.url}` to write it") from None
    if problem := _problem(metadata):
        raise JobError(f"{name}: damaged: {problem}{anew}")
    return metadata


_FIELDS = {"format": int, "complete": bool, "missing": list, "total_batches": int, "dtype": str, "taps": list}
_FIELDS |= {"widths": dict, "statistics": dict, "batches": list, "rows_files": list}
_STORED = {"file": str, "size": int, "crc32c": str}
_ROWS_ENTRY = {"batch_id": int, "rows": int, **_STORED}
_ENTRY = {**_ROWS_ENTRY, "layer": str, "offset": int}


def _problem(metadata: Any) -> str:
    """What is wrong with the metadata; empty where nothing is."""
    if not _has(metadata, _FIELDS):
        return f"it must have {', '.join(_FIELDS)}"
    if metadata["format"] != layout.FORMAT:
        return f"format {metadata['format']}, this version reads {layout.FORMAT}"
    if metadata["dtype"] not in DTYPE_OF:
        return f"unknown dtype {metadata['dtype']!r}"
    if not all(type(width) is int and width >= 0 for width in metadata["widths"].values()):
        return "widths must be numbers of columns"
    if not all(_has(entry, _ENTRY) for entry in metadata["batches"]):
        return f"every entry of batches must have {', '.join(_ENTRY)}"
    if not all(_has(entry, _ROWS_ENTRY) for entry in metadata["rows_files"]):
        return f"every entry of rows_files must have {', '.join(_ROWS_ENTRY)}"
    item_bytes = DTYPE_OF[metadata["dtype"]].itemsize
    rows_of_batches = [(entry["batch_id"], entry["rows"]) for entry in metadata["rows_files"]]
    for tap in metadata["taps"]:
        if [
            (entry["batch_id"], entry["rows"]) for entry in metadata["batches"] if entry["layer"] == tap
        ] != rows_of_batches:
            return f"batches of {tap} do not match rows_files"
    if problem := _problem_of_joined(metadata):
        return problem
    for entry in metadata["batches"]:
        inside = entry["offset"] - entry.get("start", 0)
        expected = inside + entry["rows"] * metadata["widths"].get(entry["layer"], -1) * item_bytes
        if entry["rows"] < 0 or inside < 0 or entry["size"] != expected:
            return f"{entry['file']} of {entry['size']} bytes does not fit its rows and width"
    return ""


def _problem_of_joined(metadata: dict[str, Any]) -> str:
    """Entries of a compacted run have `start`, and lie in files that `joined` tells of."""
    joined = metadata.get("joined", [])
    if not isinstance(joined, list) or not all(_has(file, _STORED) for file in joined):
        return f"every entry of joined must have {', '.join(_STORED)}"
    sizes = {file["file"]: file["size"] for file in joined}
    for entry in (*metadata["batches"], *metadata["rows_files"]):
        if ("start" in entry) != (entry["file"] in sizes):
            return f"start of {entry['file']} and joined do not agree"
        start, size = entry.get("start", 0), entry["size"]
        if type(start) is not int or start < 0 or not 0 <= size <= sizes.get(entry["file"], size) - start:
            return f"batch {entry['batch_id']} does not lie within {entry['file']}"
    return ""


def _has(entry: Any, fields: Mapping[str, type]) -> bool:
    return isinstance(entry, dict) and all(isinstance(entry.get(key), kind) for key, kind in fields.items())
