"""Opens the rows of a tap by the entries of metadata.json."""

from pod_job.formats.quantized import is_eight_bit, scale_bytes
from pod_job.formats.safetensors import DTYPE_OF
from pod_job.reading.checked import Checks, FileRows
from pod_job.reading.row_reader import RowReader
from pod_job.reading.row_source import JoinedRows
from pod_job.run_folder import layout
from pod_job.run_folder.metadata import BatchEntry, Metadata
from pod_job.storage.folder import Folder


def open_rows(folder: Folder, described: Metadata, tap: str, checked: bool = True) -> RowReader | JoinedRows:
    """Returns the tap's rows; in rows of eight bits the scales follow the values. `checked`: as they are read."""
    stored, width = DTYPE_OF[described.dtype], described.widths.get(tap, 0)
    sizes = {file.file: file.size for file in described.joined or ()}
    of_values, of_scales = width * stored.itemsize, scale_bytes(width, stored)
    checks = Checks(folder) if checked else None

    def rows_of(entry: BatchEntry, offset: int) -> FileRows:
        name, size, start = layout.ACTIVATIONS + entry.file, sizes.get(entry.file, entry.size), entry.start or 0
        return FileRows(name, entry.rows, offset, size, entry.batch_id, tap, start, entry.size, entry.crc32c)

    entries = [entry for entry in described.batches if entry.layer == tap]
    values = RowReader(folder, [rows_of(entry, entry.offset) for entry in entries], of_values, checks)
    if not is_eight_bit(stored):
        return values
    scales = [rows_of(entry, entry.offset - entry.rows * of_scales) for entry in entries]
    return JoinedRows([values, RowReader(folder, scales, of_scales, checks)])
