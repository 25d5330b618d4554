"""Checkpoints read: a start on any mesh puts the state together from the parts, and reads no more than it needs."""

from collections.abc import Sequence
from typing import Any

import jax
import msgspec
import numpy as np

from pod_job.checkpoints.content import checksums
from pod_job.checkpoints.orbax import location
from pod_job.errors import JobError, first_line
from pod_job.extraction.feeder import on_any_host
from pod_job.run_folder.accepted import short
from pod_job.run_folder.differences import differences
from pod_job.run_folder.layout import CHECKPOINTS
from pod_job.run_folder.train_identity import TrainIdentity
from pod_job.storage.folder import Folder
from pod_job.training.checkpoints import Checkpoint, PartRecord, Piece, piece_spec, step_folder


def check_same_training(folder: Folder, checkpoint: Checkpoint, train: TrainIdentity) -> None:
    """Raises JobError where the checkpoint is of SAEs or a schedule other than these."""
    recorded, current = msgspec.to_builtins(checkpoint.parts[0].train), msgspec.to_builtins(train)
    if differing := differences(recorded, current):
        listed = "; ".join(
            f"train.{path} is {short(was)} there, {short(here)} here" for path, was, here in differing[:8]
        )
        raise JobError(
            f"{folder.url}/{step_folder(checkpoint.step)} is a checkpoint of other SAEs: {listed}; use another "
            "storage.run_dir"
        )


def restore(folder: Folder, checkpoint: Checkpoint, like: Any) -> Any:
    """Returns the state of a checkpoint on the devices.

    Args:
        like: pytree of jax.ShapeDtypeStruct with shardings, or of arrays, as the state is to lie on the devices.
    Raises:
        JobError: a file of the checkpoint is missing or damaged, or it has not all of the state; on every host.
    """
    check_files(folder, checkpoint)
    pieces: dict[str, list[tuple[PartRecord, Piece]]] = {}
    for part in checkpoint.parts:
        for piece in part.pieces:
            pieces.setdefault(piece.leaf, []).append((part, piece))

    def leaf(path: Any, target: Any) -> jax.Array:
        name = jax.tree_util.keystr(path)

        def fill(index: Any) -> np.ndarray:
            box = [part.indices(size)[:2] for part, size in zip(index, target.shape, strict=True)]
            here = pieces.get(name, [])
            try:
                for _, piece in here:
                    check_extent(piece, target.shape)
                return read_box(folder, here, box, np.dtype(target.dtype))
            except (ValueError, IndexError) as error:  # of tensorstore, and of boxes that do not overlap
                reason = f"its records do not fit its arrays ({first_line(error)})"
                raise damaged(folder, checkpoint, reason) from error

        return jax.make_array_from_callback(target.shape, target.sharding, fill)

    return jax.tree_util.tree_map_with_path(leaf, like)


def check_files(folder: Folder, checkpoint: Checkpoint) -> None:
    """Raises JobError on every host where a file of the checkpoint is not as it was written.

    Each part is read by one host, its own where there are as many as wrote the checkpoint.
    """
    found = None
    try:
        check_parts(folder, checkpoint, checkpoint.parts[jax.process_index() :: jax.process_count()])
    except JobError as error:
        found = error
    [elsewhere] = on_any_host([found is not None])
    if found is None and elsewhere:
        found = damaged(folder, checkpoint, "another host reads a damaged part, which its log names")
    if found is not None:
        raise found


def check_parts(folder: Folder, checkpoint: Checkpoint, parts: Sequence[PartRecord]) -> None:
    """Raises JobError where a file of these parts is not as it was written."""
    for part in parts:
        recorded = {f"{part.path}/{name}": value for name, value in part.files.items()}
        try:
            present = checksums(folder, list(recorded))
        except FileNotFoundError as error:
            raise damaged(folder, checkpoint, f"{error.filename or error} is missing") from error
        for name, value in recorded.items():
            if present[name] != value:
                raise damaged(folder, checkpoint, f"{name} is not what was written")


def damaged(folder: Folder, checkpoint: Checkpoint, reason: str) -> JobError:
    where = f"{folder.url}/{step_folder(checkpoint.step)}"
    return JobError(f"{where}: {reason}; remove {where} to go on from the checkpoint before it")


def check_extent(piece: Piece, shape: Sequence[int]) -> None:
    """Raises ValueError where a piece is none of an array of this shape."""
    if any(first + size > whole for first, size, whole in zip(piece.start, piece.shape, shape, strict=True)):
        raise ValueError(f"{piece.leaf} has no piece {piece.name}, its shape is {tuple(shape)}")


def read_box(
    folder: Folder,
    pieces: Sequence[tuple[PartRecord, Piece]],
    box: Sequence[tuple[int, int]],
    dtype: np.dtype,
) -> np.ndarray:
    """Returns the values of an array in a box, put together from the pieces that overlap it.

    Raises:
        ValueError: a piece has values of another dtype, as an earlier version may have written them.
    """
    out, filled = np.empty([stop - start for start, stop in box], dtype), 0
    for part, piece in pieces:
        spans = [
            (max(start, first), min(stop, first + size))
            for (start, stop), first, size in zip(box, piece.start, piece.shape, strict=True)
        ]
        if any(start >= stop for start, stop in spans):
            continue
        source = tuple(
            slice(start - first, stop - first) for (start, stop), first in zip(spans, piece.start, strict=True)
        )
        target = tuple(slice(start - first, stop - first) for (start, stop), (first, _) in zip(spans, box, strict=True))
        stored = open_piece(folder, part, piece)
        if stored.dtype.numpy_dtype != dtype:
            raise ValueError(f"{piece.leaf} is {stored.dtype.name}, not {dtype}")
        values = stored[source or slice(None)].read().result()
        out[target] = values.reshape(out[target].shape)
        filled += out[target].size
    if filled != out.size:
        raise JobError(f"{folder.url}: a checkpoint has not all of its state; remove the newest below {CHECKPOINTS}")
    return out


def open_piece(folder: Folder, part: PartRecord, piece: Piece) -> Any:
    """Opens the array of a piece. JobError where it is not there."""
    import tensorstore

    try:
        return tensorstore.open(piece_spec(f"{location(folder)}/{part.path}/", piece.name), read=True).result()
    except ValueError:
        where = f"{folder.url}/{step_folder(part.step)}"
        raise JobError(
            f"{where}: {part.path} lacks {piece.name}; remove {where} to go on from the checkpoint before it"
        ) from None
