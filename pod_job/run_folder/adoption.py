"""Files that a killed or a faster writer of the same batch left: adopted where they are whole, else made again.

Content without a commit record has no recorded checksum yet, so it must show by itself that nothing in it was altered.
"""

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from pod_job.errors import JobError
from pod_job.formats import rows_table
from pod_job.formats.quantized import Vectors
from pod_job.formats.relative_errors import relative_errors
from pod_job.formats.rows_table import Rows
from pod_job.run_folder import layout
from pod_job.run_folder.tap_file import tap_parts, vectors_in
from pod_job.storage.checksums import Part, Stored, checksum
from pod_job.storage.folder import Folder, NameTaken

FAR = 0.5
"""Median relative error of rows that are not of the same computation; meshes and rounding come to less than 0.2."""
MOST_COMPARED = 1024
"""Rows of a batch, evenly spaced, that are compared."""
ATTEMPTS = 3
MOST_TIMES, SPARE_BYTES = 4, 1 << 20
"""A file is read if it has at most so many times the bytes of the one that is to be stored, and these."""

log = logging.getLogger("pod_job")
T = TypeVar("T")


def create_or_adopt(
    folder: Folder, batch: int, name: str, parts: Sequence[Part], adopted: Callable[[bytes], T | None]
) -> tuple[Stored, T | None]:
    """Stores a file of a batch; returns what is stored, and the content that was adopted, None where it is `parts`.

    Args:
        adopted: returns the content of a file that is whole, and None for one that is damaged. A damaged file gives
            way, unless the batch is committed: then its record describes the file as it was.
    Raises:
        JobError: the file is damaged and the batch committed, or as `adopted` raises it.
    """
    for _ in range(ATTEMPTS):
        try:
            return folder.create(name, parts), None
        except NameTaken:
            data = _read(folder, name, sum(memoryview(part).nbytes for part in parts))
            if (content := adopted(data)) is not None:
                return checksum([data]), content
            if folder.stat(layout.commit_file(batch)) is not None:
                raise JobError(
                    f"{folder.url}/{name}: is damaged, and batch {batch} is committed; "
                    f"`pod-job verify {folder.url}` says what to do"
                ) from None
            log.warning("%s/%s: is damaged and of no commit record; it is made again", folder.url, name)
            folder.remove(name)
    raise JobError(f"{folder.url}/{name}: comes out damaged each time it is written; use another disk")


def _read(folder: Folder, name: str, size: int) -> bytes:
    """Returns the content of a file in the place of one of this size. JobError where it is far larger."""
    most = MOST_TIMES * size + SPARE_BYTES
    data = folder.read(name, 0, most + 1)
    if len(data) > most:
        raise JobError(
            f"{folder.url}/{name}: is larger than {most} bytes, where this run's has {size}; remove it, or use another "
            "storage.run_dir if another run wrote it"
        )
    return data


def adopted_tap(url: str, batch: int, tap: str, vectors: Vectors, data: bytes) -> Vectors | None:
    """Returns the vectors in a tap file; None where it is not whole, or not of this batch and tap.

    Args:
        url: the run folder.
        vectors: what this process made of the batch, maybe on another mesh.

    Raises:
        JobError: it is another run's.
    """
    name = f"{url}/{layout.activations_file(tap, batch)}"
    try:
        stored = vectors_in(data, name)
    except JobError:
        return None
    if checksum(tap_parts(stored, tap, batch)) != checksum([data]):
        return None
    if (stored.dtype, stored.shape) != (vectors.dtype, vectors.shape):
        raise JobError(
            f"{name}: holds {stored.dtype} {list(stored.shape)}, this run makes {vectors.dtype} "
            f"{list(vectors.shape)}; another run wrote it: use another storage.run_dir"
        )
    if (error := median_error(stored, vectors)) > FAR:
        raise JobError(
            f"{name}: its rows are {error:.0%} off those that this run makes (median), which no rounding explains; "
            "another run wrote it: use another storage.run_dir"
        )
    return stored


def adopted_rows(url: str, batch: int, rows: Rows, data: bytes) -> Rows | None:
    """Returns the stored rows table; None where it is not whole. JobError where it describes another run's rows.

    The table carries its time, and flags as of the stored vectors. Every byte follows from what it describes, so one
    that is written otherwise was altered, or written by another version of pyarrow.
    """
    name = f"{url}/{layout.rows_file(batch)}"
    try:
        stored = rows_table.from_parquet(data, name)
    except JobError:
        return None
    if rows_table.to_parquet(stored) != data:
        return None
    if not stored.describes_same(rows):
        raise JobError(
            f"{name}: describes other rows than this run's batch {batch}; "
            "another run wrote it: use another storage.run_dir"
        )
    return stored


def median_error(stored: Vectors, vectors: Vectors) -> float:
    """Returns the median relative error of rows that are finite on both sides; 0 without any."""
    few = slice(None, None, max(1, len(vectors) // MOST_COMPARED))
    errors = relative_errors(np.asarray(stored[few], np.float32), np.asarray(vectors[few], np.float32))
    finite = errors[np.isfinite(errors)]
    return float(np.median(finite)) if len(finite) else 0.0
