"""What an entry of metadata.json stands for: a tap file or a rows table, by itself or in a joined file."""

from collections.abc import Mapping
from typing import Any

from pod_job.errors import JobError
from pod_job.formats.quantized import Vectors
from pod_job.formats.rows_table import Rows, from_parquet
from pod_job.run_folder import layout
from pod_job.run_folder.tap_file import vectors_in
from pod_job.storage.checksums import Stored, checksum
from pod_job.storage.folder import Folder, not_as_stored

MISSING = "missing; open the run again if it was compacted meanwhile, else copy it again"


def read_vectors(run: Folder, entry: Mapping[str, Any]) -> Vectors:
    """The vectors of an entry of `batches`. JobError where the file is missing or was changed."""
    name, data = read_entry(run, entry)
    return with_rows(vectors_in(data, name), entry, name)


def read_rows(run: Folder, entry: Mapping[str, Any]) -> Rows:
    """The table of an entry of `rows_files`. JobError as `read_vectors`."""
    name, data = read_entry(run, entry)
    return with_rows(from_parquet(data, name), entry, name)


def read_entry(run: Folder, entry: Mapping[str, Any]) -> tuple[str, bytes]:
    """What the file is called in errors, and its bytes."""
    file = layout.ACTIVATIONS + entry["file"]
    name = f"{run.url}/{file}"
    try:
        data = run.read(file, entry["start"], entry["size"]) if "start" in entry else run.read(file)
    except FileNotFoundError:
        raise JobError(f"{name}: {MISSING}") from None
    if checksum([data]) != Stored(entry["size"], entry["crc32c"]):
        raise not_as_stored(run.url, file)
    return name, data


def with_rows(found: Any, entry: Mapping[str, Any], name: str) -> Any:
    if len(found) != entry["rows"]:
        raise JobError(f"{name}: holds {len(found)} rows, metadata.json says {entry['rows']}")
    return found
