"""Small files of a finished run into large ones: `pod-job merge RUN_DIR --compact`.

First the new files, of which nothing counts yet; then the record by which they do; then metadata.json, which names
them; then the old files go. So it may end anywhere, and be started again, also twice at the same time.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from pod_job.errors import JobError
from pod_job.finishing.merge import gather, merge
from pod_job.formats.quantized import SCALE, groups, is_eight_bit
from pod_job.formats.safetensors import DTYPE_OF, header_bytes
from pod_job.progress import Progress, no_progress
from pod_job.run_folder import layout
from pod_job.run_folder.compaction import ROWS, JoinedFile, read_compaction, render
from pod_job.run_folder.tap_file import SCALES, TENSOR
from pod_job.storage.checksums import Stored, checksum
from pod_job.storage.folder import Folder, NameTaken

MAX_BYTES = 1 << 30
MOST_FILES = 32_768
"""In one: its header must stay far below what safetensors readers take."""
JOINS_IN_FLIGHT = 2
REMOVALS_IN_FLIGHT = 32

Entry = dict[str, Any]


def compact(
    folder: Folder, max_bytes: int = MAX_BYTES, progress: Progress = no_progress, processes: int = 1
) -> dict[str, Any]:
    """Joins the files of each tap, and the rows tables, into files of at most `max_bytes`; returns the new metadata.

    A run that was compacted stays as it is; what an interrupted compaction has left undone is done. Raises JobError,
    having removed nothing, where the run is unfinished, or a file of it is missing or damaged. `processes`: as for
    `merge`.
    """
    if max_bytes < 1:
        raise JobError(f"--max-bytes {max_bytes}: must be at least 1; files of a gigabyte or more are read best")
    described = gather(folder, progress, processes)
    if not described["complete"]:
        missing = len(described["missing"])
        raise JobError(f"{folder.url}: unfinished, {missing} batches are missing; finish the job before --compact")
    if "joined" not in described:
        join_files(folder, described, max_bytes, progress)
    metadata = merge(folder, progress, processes)
    remove_leftovers(folder, progress)
    return metadata


def join_files(folder: Folder, described: dict[str, Any], max_bytes: int, progress: Progress) -> None:
    """Makes the new files durable, and then the record that makes them count."""
    groups = [group for entries in series_of(described) for group in grouped(entries, max_bytes)]
    if not groups:
        return
    try:
        with ThreadPoolExecutor(JOINS_IN_FLIGHT) as pool:
            joining = pool.map(lambda group: join_group(folder, described, group), groups)
            files = list(progress(joining, len(groups), "files"))
        folder.create(layout.COMPACTION, [render(files)])
    except (FileNotFoundError, NameTaken) as error:
        # Another process may have been first: its files count, and what ours were being made of may be gone.
        if read_compaction(folder) is None:
            raise JobError(explained(folder, error)) from error


def explained(folder: Folder, error: FileNotFoundError | NameTaken) -> str:
    if isinstance(error, NameTaken):
        return f"{folder.url}/{error.name}: holds something else; remove it and compact again"
    return f"{error.filename or error}: missing; copy the run again"


def series_of(described: dict[str, Any]) -> Iterator[list[Entry]]:
    """The entries of metadata.json, of each tap and of the rows tables, in the order of batches."""
    for tap in described["taps"]:
        yield [entry for entry in described["batches"] if entry["layer"] == tap]
    yield described["rows_files"]


def grouped(entries: Sequence[Entry], max_bytes: int) -> Iterator[list[Entry]]:
    """Neighbours that fit into one file; a file without such neighbours stays alone, and is none of these."""
    group: list[Entry] = []
    held = 0
    for entry in entries:
        if held + entry["size"] > max_bytes or len(group) == MOST_FILES:
            if len(group) > 1:
                yield group
            group, held = [], 0
        group.append(entry)
        held += entry["size"]
    if len(group) > 1:
        yield group


def join_group(folder: Folder, described: dict[str, Any], group: Sequence[Entry]) -> JoinedFile:
    """Makes one new file; its content depends on the old ones only."""
    series = group[0].get("layer", ROWS)
    head = header(described, series, group)
    sizes = tuple(entry["size"] for entry in group)
    file = JoinedFile(series, group[0]["batch_id"], sizes, checksum([head]))
    sources = [(layout.ACTIVATIONS + entry["file"], Stored(entry["size"], entry["crc32c"])) for entry in group]
    folder.join(file.name, head, sources)
    return file


def header(described: dict[str, Any], series: str, group: Sequence[Entry]) -> bytes:
    """The header that makes the old files, from their headers on, tensors of one safetensors file."""
    parts = [part for entry in group for part in tensors_of(described, entry)]
    span = f"{group[0]['batch_id']}-{group[-1]['batch_id']}"
    return header_bytes(parts, {"format": str(layout.FORMAT), "series": series, "batches": span})


def tensors_of(described: dict[str, Any], entry: Entry) -> Iterator[tuple[str, np.dtype, tuple[int, ...]]]:
    """What an old file consists of; whatever is no tensor there is one of bytes here, for there may be no gaps."""
    plain, byte = entry["file"].rpartition(".")[0], np.dtype(np.uint8)
    if "layer" not in entry:
        yield entry["file"], byte, (entry["size"],)
        return
    dtype, rows, width = DTYPE_OF[described["dtype"]], entry["rows"], described["widths"][entry["layer"]]
    scales = (rows, groups(width)) if is_eight_bit(dtype) else (0, 0)
    yield f"{plain}.header", byte, (entry["offset"] - scales[0] * scales[1] * SCALE.itemsize,)
    if is_eight_bit(dtype):
        yield f"{plain}.{SCALES}", SCALE, scales
    yield f"{plain}.{TENSOR}", dtype, (rows, width)


def remove_leftovers(folder: Folder, progress: Progress) -> None:
    """Removes the files that were joined, and those of a compaction that was not the first to finish."""
    files = read_compaction(folder)
    if files is None:
        return
    ours = {file.name for file in files}
    old = {file.file_of(batch) for file in files for batch, _, _ in file.places}
    names = folder.names(layout.ACTIVATIONS)
    found = [name for name in names if name in old or (layout.is_joined(name) and name not in ours)]
    with ThreadPoolExecutor(REMOVALS_IN_FLIGHT) as pool:
        for _ in progress(pool.map(folder.remove, found), len(found), "old files"):
            pass
