"""activations/metadata.json: the whole dataset in one file, for people and programs, read without trusting it."""

import json
import warnings
from typing import Annotated, Literal

import msgspec

from pod_job.errors import JobError
from pod_job.formats.checksummed_json import read_checksummed, with_checksum
from pod_job.formats.records import Count, Record, decode, read_bounded
from pod_job.formats.safetensors import DTYPE_OF
from pod_job.formats.statistics import Summary
from pod_job.run_folder import layout
from pod_job.run_folder.accepted import AcceptedDifference
from pod_job.run_folder.commit import PromptCounts
from pod_job.run_folder.identity import Identity, RelativeErrors, check_holds_vectors, read_run
from pod_job.run_folder.parity import ParityRecord
from pod_job.storage.checksums import checksum
from pod_job.storage.folder import Folder

Start = Annotated[int, msgspec.Meta(ge=1, lt=1 << 48)]

MOST_METADATA_BYTES = 4 << 30
"""Size of the file: some two hundred bytes for each file of each batch."""


class RowsEntry(Record, frozen=True, omit_defaults=True, gc=False):
    """A batch's rows table. `file` lies beside metadata.json; in a compacted run the table begins at byte `start`."""

    batch_id: Count
    file: str
    rows: Count
    size: Count
    crc32c: str
    start: Start | None = None


class BatchEntry(Record, frozen=True, omit_defaults=True, gc=False):
    """A batch's vectors of one tap (`layer`), which begin at byte `offset` of `file`. `start`: as in RowsEntry."""

    batch_id: Count
    layer: str
    file: str
    n_samples: Count
    rows: Count
    offset: Count
    size: Count
    crc32c: str
    start: Start | None = None


class JoinedEntry(Record, frozen=True):
    """A file of a compacted run that holds the files of several batches."""

    file: str
    size: Count
    crc32c: str


class Metadata(Record, frozen=True, kw_only=True, omit_defaults=True):
    """`provenance` is the identity in run.json, dictionaries are by tap, `joined` is for a compacted run only.

    `prompts` counts the prompts that were left out, by reason, whenever that was found; None where there are none.
    `accepted` are differences from that identity with which parts of the run were computed.
    """

    model_name: str
    layers_extracted: list[Count]
    hidden_dim: Count
    total_samples: Count
    format: Literal[2]
    complete: bool
    missing: list[Count]
    total_batches: Count
    rows: Count
    dtype: str
    taps: list[str]
    widths: dict[str, Count]
    statistics: dict[str, Summary]
    rounding: dict[str, RelativeErrors]
    provenance: Identity
    parity: list[ParityRecord]
    pod_job_version: str
    merged: str
    rows_files: list[RowsEntry]
    batches: list[BatchEntry]
    prompts: PromptCounts | None = None
    joined: list[JoinedEntry] | None = None
    accepted: list[AcceptedDifference] | None = None


ENTRIES = ("rows_files", "batches", "joined", "accepted")


def content_checksum(metadata: Metadata) -> str:
    """Returns the CRC-32C over the names, sizes and checksums of all files: it changes when the dataset does."""
    files = [getattr(metadata, key) for key in ENTRIES]
    return checksum([msgspec.json.encode(files)]).crc32c


def render(metadata: Metadata) -> bytes:
    """Returns the file: JSON with one file per line, which a person can read and grep."""
    lines = []
    for key in metadata.__struct_fields__:
        value = getattr(metadata, key)
        if value is None:
            continue
        if key not in ENTRIES:
            lines.append(json.dumps({key: msgspec.to_builtins(value)})[1:-1].encode())
        else:
            entries = (msgspec.json.format(msgspec.json.encode(entry), indent=0) for entry in value)
            lines.append(b'"%s": [\n  %s\n ]' % (key.encode(), b",\n  ".join(entries)))
    return with_checksum(b"{\n " + b",\n ".join(lines) + b"\n}")


def read(folder: Folder) -> Metadata:
    """Returns the content of metadata.json; warns where the run is unfinished.

    Raises:
        JobError: the file is missing or damaged.
    """
    metadata = read_any(folder)
    if not metadata.complete:
        missing, total = len(metadata.missing), metadata.total_batches
        warnings.warn(f"{folder.url}: unfinished run, {missing} of {total} batches are missing", stacklevel=3)
    return metadata


def read_any(folder: Folder) -> Metadata:
    """Returns the content of metadata.json, of an unfinished run without a warning. JobError as `read` raises it."""
    name = f"{folder.url}/{layout.METADATA}"
    advice = f"run `pod-job merge {folder.url}` to write it"
    try:
        data = read_checksummed(read_bounded(folder, layout.METADATA, MOST_METADATA_BYTES), name, f"; {advice} again")
    except FileNotFoundError:
        check_holds_vectors(folder, read_run(folder))
        raise JobError(f"{name}: missing; {advice}") from None
    metadata = decode(data, Metadata, name, f"{advice} again")
    if problem := _problem(metadata):
        raise JobError(f"{name}: damaged: {problem}; {advice} again")
    return metadata


def _problem(metadata: Metadata) -> str:
    """Returns what contradicts itself in the metadata; "" where nothing does."""
    if metadata.dtype not in DTYPE_OF:
        return f"unknown dtype {metadata.dtype!r}"
    rows = [(entry.batch_id, entry.rows) for entry in metadata.rows_files]
    rows_of: dict[str, list[tuple[int, int]]] = {tap: [] for tap in metadata.taps}
    for entry in metadata.batches:
        rows_of.setdefault(entry.layer, []).append((entry.batch_id, entry.rows))
    for tap in metadata.taps:
        if rows_of[tap] != rows:
            return f"batches of {tap} do not match rows_files"
    return _problem_of_joined(metadata) or _problem_of_sizes(metadata)


def _problem_of_sizes(metadata: Metadata) -> str:
    item_bytes = DTYPE_OF[metadata.dtype].itemsize
    for entry in metadata.batches:
        header_bytes = entry.offset - (entry.start or 0)
        expected = header_bytes + entry.rows * metadata.widths.get(entry.layer, -1) * item_bytes
        if header_bytes < 0 or entry.size != expected or (entry.rows and not metadata.widths[entry.layer]):
            return f"{entry.file} of {entry.size} bytes does not fit its rows and width"
    return ""


def _problem_of_joined(metadata: Metadata) -> str:
    """Returns which entry with a `start` does not lie within a file in `joined`, or lies in one without a `start`."""
    sizes = {file.file: file.size for file in metadata.joined or ()}
    for entry in (*metadata.batches, *metadata.rows_files):
        if (entry.start is not None) != (entry.file in sizes):
            return f"start of {entry.file} and joined do not agree"
        if entry.start is not None and entry.start + entry.size > sizes[entry.file]:
            return f"batch {entry.batch_id} does not lie within {entry.file}"
    return ""
