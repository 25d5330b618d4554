"""Opens the rows of a tap by the entries of metadata.json."""

from pod_job.formats.quantized import is_eight_bit, scale_bytes
from pod_job.formats.safetensors import DTYPE_OF
from pod_job.reading.row_reader import FileRows, RowReader
from pod_job.reading.row_source import JoinedRows
from pod_job.run_folder import layout
from pod_job.run_folder.metadata import Metadata
from pod_job.storage.folder import Folder


def open_rows(folder: Folder, described: Metadata, tap: str) -> RowReader | JoinedRows:
    """Returns the tap's rows; in rows of eight bits the scales follow the values."""
    stored, width = DTYPE_OF[described.dtype], described.widths.get(tap, 0)
    sizes = {file.file: file.size for file in described.joined or ()}
    of_values, of_scales = width * stored.itemsize, scale_bytes(width, stored)
    values, scales = [], []
    for entry in described.batches:
        if entry.layer == tap:
            name, size = layout.ACTIVATIONS + entry.file, sizes.get(entry.file, entry.size)
            values.append(FileRows(name, entry.rows, entry.offset, size))
            scales.append(FileRows(name, entry.rows, entry.offset - entry.rows * of_scales, size))
    if not is_eight_bit(stored):
        return RowReader(folder, values, of_values)
    return JoinedRows([RowReader(folder, values, of_values), RowReader(folder, scales, of_scales)])
