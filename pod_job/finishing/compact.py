"""Joins the small files of a finished run into large ones: `pod-job merge RUN_DIR --compact`.

First the new files are written, none of which counts yet; then the record by which they count; then metadata.json,
which names them; then the old files are removed. So it may end anywhere and be started again, also twice at a time.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from pod_job.errors import JobError
from pod_job.finishing.merge import ABANDONED_S, gather, merge
from pod_job.formats.quantized import SCALE, groups, is_eight_bit
from pod_job.formats.safetensors import DTYPE_OF, header_bytes
from pod_job.progress import Progress, no_progress
from pod_job.run_folder import layout
from pod_job.run_folder.compaction import ROWS, JoinedFile, read_compaction, render
from pod_job.run_folder.metadata import BatchEntry, Metadata, RowsEntry
from pod_job.run_folder.tap_file import SCALES, TENSOR
from pod_job.storage.checksums import Stored, checksum
from pod_job.storage.folder import Folder, NameTaken

MAX_BYTES = 1 << 30
MOST_FILES = 32_768
"""Joined into one: its header must stay far below what safetensors readers take."""
JOINS_IN_FLIGHT = 2
REMOVALS_IN_FLIGHT = 32

Entry = BatchEntry | RowsEntry


def compact(
    folder: Folder, max_bytes: int = MAX_BYTES, progress: Progress = no_progress, processes: int = 1
) -> Metadata:
    """Joins the files of each tap, and the rows tables, into files of at most `max_bytes`; returns the new metadata.

    A run that was compacted stays as it is; an interrupted compaction is finished.

    Args:
        processes: as for `merge`.
    Raises:
        JobError: the run is unfinished, or a file of it is missing or damaged; nothing was removed.
    """
    if max_bytes < 1:
        raise JobError(f"--max-bytes {max_bytes}: must be at least 1; files of a gigabyte or more are read best")
    metadata = gather(folder, progress, processes)
    if not metadata.complete:
        missing = len(metadata.missing)
        raise JobError(f"{folder.url}: unfinished, {missing} batches are missing; finish the job before --compact")
    if metadata.joined is None:
        join_files(folder, metadata, max_bytes, progress)
    metadata = merge(folder, progress, processes)
    remove_leftovers(folder, progress)
    return metadata


def join_files(folder: Folder, metadata: Metadata, max_bytes: int, progress: Progress) -> None:
    """Makes the new files durable, and then the record that makes them count."""
    joinable = [group for entries in series_of(metadata) for group in grouped(entries, max_bytes)]
    if not joinable:
        return
    try:
        with ThreadPoolExecutor(JOINS_IN_FLIGHT) as pool:
            joining = pool.map(lambda group: join_group(folder, metadata, group), joinable)
            files = list(progress(joining, len(joinable), "files"))
        folder.create(layout.COMPACTION, [render(files)])
    except (FileNotFoundError, NameTaken) as error:
        # Another process may have been first: its files count, and the sources of these may be gone.
        if read_compaction(folder) is None:
            raise JobError(explained(folder, error)) from error


def explained(folder: Folder, error: FileNotFoundError | NameTaken) -> str:
    """Returns the error as one line with what to do."""
    if isinstance(error, NameTaken):
        return f"{folder.url}/{error.name}: holds something else; remove it and compact again"
    return f"{error.filename or error}: missing; copy the run again"


def series_of(metadata: Metadata) -> Iterator[Sequence[Entry]]:
    """Yields the entries of each tap and of the rows tables, in the order of batches."""
    for tap in metadata.taps:
        yield [entry for entry in metadata.batches if entry.layer == tap]
    yield metadata.rows_files


def grouped(entries: Sequence[Entry], max_bytes: int) -> Iterator[list[Entry]]:
    """Yields neighbors that fit into one file together; a file without such neighbors is in no group."""
    group: list[Entry] = []
    group_bytes = 0
    for entry in entries:
        if group_bytes + entry.size > max_bytes or len(group) == MOST_FILES:
            if len(group) > 1:
                yield group
            group, group_bytes = [], 0
        group.append(entry)
        group_bytes += entry.size
    if len(group) > 1:
        yield group


def join_group(folder: Folder, metadata: Metadata, group: Sequence[Entry]) -> JoinedFile:
    """Makes one new file; its content depends on the old ones only."""
    first = group[0]
    series = first.layer if isinstance(first, BatchEntry) else ROWS
    head = header(metadata, series, group)
    stored = checksum([head])
    file = JoinedFile(series, first.batch_id, [entry.size for entry in group], stored.size, stored.crc32c)
    sources = [(layout.ACTIVATIONS + entry.file, Stored(entry.size, entry.crc32c)) for entry in group]
    folder.join(file.name, head, sources)
    return file


def header(metadata: Metadata, series: str, group: Sequence[Entry]) -> bytes:
    """Returns the header that makes the old files, from their headers on, tensors of one safetensors file."""
    tensors = [tensor for entry in group for tensor in tensors_of(metadata, entry)]
    span = f"{group[0].batch_id}-{group[-1].batch_id}"
    return header_bytes(tensors, {"format": str(layout.FORMAT), "series": series, "batches": span})


def tensors_of(metadata: Metadata, entry: Entry) -> Iterator[tuple[str, np.dtype, tuple[int, ...]]]:
    """Yields the tensors of an old file; its header is one of bytes in the new file, for there may be no gaps."""
    plain, byte = entry.file.rpartition(".")[0], np.dtype(np.uint8)
    if isinstance(entry, RowsEntry):
        yield entry.file, byte, (entry.size,)
        return
    dtype, rows, width = DTYPE_OF[metadata.dtype], entry.rows, metadata.widths[entry.layer]
    scales = (rows, groups(width)) if is_eight_bit(dtype) else (0, 0)
    yield f"{plain}.header", byte, (entry.offset - scales[0] * scales[1] * SCALE.itemsize,)
    if is_eight_bit(dtype):
        yield f"{plain}.{SCALES}", SCALE, scales
    yield f"{plain}.{TENSOR}", dtype, (rows, width)


def remove_leftovers(folder: Folder, progress: Progress) -> None:
    """Removes the files that were joined, and those of a compaction that was not the first to finish."""
    files = read_compaction(folder)
    if files is None:
        return
    current = {file.name for file in files}
    old = {file.file_of(batch) for file in files for batch, _, _ in file.places}
    names = folder.names(layout.ACTIVATIONS)
    leftovers = [name for name in names if name in old or (layout.is_joined(name) and name not in current)]
    with ThreadPoolExecutor(REMOVALS_IN_FLIGHT) as pool:
        for _ in progress(pool.map(folder.remove, leftovers), len(leftovers), "old files"):
            pass
    folder.sweep(ABANDONED_S, layout.is_joined)  # whoever is still on the way to such a file is not the first
