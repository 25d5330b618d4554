"""Reads what an entry of metadata.json stands for: a tap file or a rows table, by itself or in a joined file."""

from pod_job.errors import JobError
from pod_job.formats.quantized import Vectors
from pod_job.formats.rows_table import Rows, from_parquet
from pod_job.run_folder import layout
from pod_job.run_folder.metadata import BatchEntry, RowsEntry
from pod_job.run_folder.tap_file import vectors_in
from pod_job.storage.checksums import Stored, checksum
from pod_job.storage.folder import Folder, not_as_stored

MISSING = "missing; open the run again if it was compacted meanwhile, else copy it again"


def read_vectors(run: Folder, entry: BatchEntry) -> Vectors:
    """Returns the vectors of an entry of `batches`. JobError where the file is missing or was changed."""
    name, data = _read(run, entry)
    vectors = vectors_in(data, name)
    if len(vectors) != entry.rows:
        raise JobError(f"{name}: holds {len(vectors)} rows, metadata.json says {entry.rows}; copy the run again")
    return vectors


def read_rows(run: Folder, entry: RowsEntry) -> Rows:
    """Returns the table of an entry of `rows_files`. JobError as `read_vectors`.

    A table of some kilobytes can hold millions of rows: read the vectors first, whose bytes must be there.
    """
    name, data = _read(run, entry)
    return from_parquet(data, name, entry.rows)


def _read(run: Folder, entry: BatchEntry | RowsEntry) -> tuple[str, bytes]:
    """Returns the name of the file for errors, and its bytes."""
    file = layout.ACTIVATIONS + entry.file
    name = f"{run.url}/{file}"
    try:
        # One byte more than there may be: a file that has grown is noticed, and never read to its end.
        more = entry.start is None
        data = run.read(file, entry.start or 0, entry.size + more)
    except FileNotFoundError:
        raise JobError(f"{name}: {MISSING}") from None
    if checksum([data]) != Stored(entry.size, entry.crc32c):
        raise not_as_stored(run.url, file)
    return name, data
