"""Checkpoints of training in the run folder: each host writes its own part while the devices go on.

A part has the pieces of arrays that lie on the host's devices, each piece once, in the layout of orbax (zarr3 in
OCDBT), and a record of where they belong, which is written last. A checkpoint counts when the records of all hosts are
there. A start on another mesh puts its pieces together from all parts, and reads no more than it needs.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import ml_dtypes  # noqa: F401  so that numpy knows bfloat16 by its name
import msgspec
import numpy as np

from pod_job.checkpoints.content import checksums
from pod_job.checkpoints.convert import output_folder
from pod_job.checkpoints.orbax import location
from pod_job.errors import JobError, first_line
from pod_job.extraction.feeder import on_any_host
from pod_job.formats.checksummed_json import KEY, read_checksummed, with_checksum
from pod_job.formats.records import Count, Record, decode, encode, read_bounded, read_file
from pod_job.run_folder.accepted import short
from pod_job.run_folder.differences import differences
from pod_job.run_folder.layout import CHECKPOINTS
from pod_job.run_folder.train_identity import TrainIdentity
from pod_job.storage.folder import Folder

KEPT = 2
"""Checkpoints that stay: the newest may be the one that a fault came with."""
CHECKSUM_BYTES = 32
"""Bytes at the end of a record that its checksum is in."""
RECORD = re.compile(re.escape(CHECKPOINTS) + r"step_(\d{9})/host_(\d{2,})\.json")

log = logging.getLogger("pod_job")


class Piece(Record, frozen=True):
    """A piece of an array of the state: its first index in each dimension, its shape, and its name in the part."""

    leaf: str
    start: list[Count]
    shape: list[Count]
    name: str


class PartRecord(Record, frozen=True, kw_only=True):
    """training/checkpoints/step_*/host_*.json; `files` has checksums of what is below `path`."""

    format: Literal[1]
    step: Count
    host: Count
    hosts: Count
    seconds: float
    train: TrainIdentity
    pieces: list[Piece]
    files: dict[str, str]

    @property
    def path(self) -> str:
        """Name of the folder of its arrays."""
        return part_folder(self.step, self.host)


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: the parts of all hosts."""

    step: int
    parts: tuple[PartRecord, ...]

    @property
    def seconds(self) -> float:
        """Seconds of training up to it, over all starts."""
        return self.parts[0].seconds


def step_folder(step: int) -> str:
    return f"{CHECKPOINTS}step_{step:09d}/"


def part_folder(step: int, host: int) -> str:
    return f"{step_folder(step)}host_{host:02d}"


def read_part(folder: Folder, name: str) -> PartRecord:
    """Returns the record of a part. JobError where it is damaged; one of an earlier version has no checksum."""
    data, where = read_bounded(folder, name), f"{folder.url}/{name}"
    if f'"{KEY}":'.encode() not in data[-CHECKSUM_BYTES:]:
        return read_file(folder, name, PartRecord)
    advice = f"; remove {where} to go on from another checkpoint"
    return decode(read_checksummed(data, where, advice), PartRecord, where)


class CheckpointWriter:
    """Writes this host's parts in a thread, one at a time. A context manager, which waits for the last one."""

    def __init__(self, folder: Folder, train: TrainIdentity, host: int, hosts: int) -> None:
        self.folder, self.train, self.host, self.hosts = folder, train, host, hosts
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self.running: Future[None] | None = None

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown()

    @property
    def busy(self) -> bool:
        """Whether a part is being written."""
        return self.running is not None and not self.running.done()

    def save(self, step: int, seconds: float, state: Any) -> None:
        """Copies the state from the devices and begins to write it; raises what went wrong with the part before."""
        self.finish()
        pieces, arrays = local_pieces(state)
        self.running = self.pool.submit(self._write, step, seconds, pieces, arrays)

    def finish(self) -> None:
        """Returns when the part is written; raises what went wrong."""
        if self.running is not None:
            self.running.result()

    def _write(self, step: int, seconds: float, pieces: Sequence[Piece], arrays: Mapping[str, np.ndarray]) -> None:
        path = part_folder(step, self.host)
        remove_below(self.folder, f"{path}/")  # what a host that was killed has left
        size = sum(array.nbytes for array in arrays.values())
        with output_folder(self.folder, path, size, "storage.run_dir") as local:
            write_part(local, arrays)
        names = self.folder.names(f"{path}/")
        files = {name.removeprefix(f"{path}/"): value for name, value in checksums(self.folder, names).items()}
        record = PartRecord(
            format=1,
            step=step,
            host=self.host,
            hosts=self.hosts,
            seconds=round(seconds, 3),
            train=self.train,
            pieces=list(pieces),
            files=files,
        )
        self.folder.replace(f"{path}.json", with_checksum(encode(record)))
        log.info("checkpoint of step %d: %.1f MB", step, size / 1e6)
        if self.host == 0:
            remove_old(self.folder)


def write_part(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes the arrays as orbax lays them out. Orbax itself writes arrays of NumPy on the first host only."""
    import tensorstore

    # In one context all arrays are one store; apart, each would write files of its own.
    context, transaction = tensorstore.Context(), tensorstore.Transaction()
    for name, array in arrays.items():
        new = {"create": True, "dtype": array.dtype, "shape": array.shape}
        stored = tensorstore.open(piece_spec(f"file://{path}/", name), context=context, transaction=transaction, **new)
        stored.result().write(array).result()
    transaction.commit_async().result()


def local_pieces(state: Any) -> tuple[list[Piece], dict[str, np.ndarray]]:
    """Returns copies of what lies on this host's devices of the state's arrays, each piece on one host only."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    shards = [
        (jax.tree_util.keystr(path), shard)
        for path, leaf in leaves
        for shard in leaf.addressable_shards
        if shard.replica_id == 0
    ]
    for _, shard in shards:
        shard.data.copy_to_host_async()
    pieces, arrays = [], {}
    for leaf, shard in shards:
        name = f"piece_{len(pieces):05d}"
        array = np.array(shard.data)  # a copy: the next step writes over what it is donated
        start = [part.start or 0 for part in shard.index]
        pieces.append(Piece(leaf, start, list(array.shape), name))
        arrays[name] = array.reshape(1) if array.ndim == 0 else array
    return pieces, arrays


def latest_checkpoint(folder: Folder) -> Checkpoint | None:
    """Returns the newest checkpoint of which all parts are there; None where there is none."""
    complete = complete_checkpoints(folder)
    return complete[-1] if complete else None


def complete_checkpoints(folder: Folder) -> list[Checkpoint]:
    """Returns the checkpoints of which all parts are there, the oldest first. JobError where a record is damaged."""
    by_step: dict[int, list[PartRecord]] = {}
    for name in folder.names(CHECKPOINTS):
        if match := RECORD.fullmatch(name):
            by_step.setdefault(int(match[1]), []).append(read_part(folder, name))
    complete = []
    for step, parts in sorted(by_step.items()):
        hosts = parts[0].hosts
        here = [part for part in parts if part.hosts == hosts]
        if len(here) == hosts:
            complete.append(Checkpoint(step, tuple(here)))
    return complete


def remove_old(folder: Folder) -> None:
    """Removes all but the newest KEPT checkpoints, the records of each before its arrays."""
    complete = complete_checkpoints(folder)
    if len(complete) < KEPT:
        return
    oldest_kept = complete[-KEPT].step
    for name in sorted(folder.names(CHECKPOINTS), key=lambda name: RECORD.fullmatch(name) is None):
        step = re.match(re.escape(CHECKPOINTS) + r"step_(\d{9})/", name)
        if step and int(step[1]) < oldest_kept:
            folder.remove(name)


def remove_after(folder: Folder, step: int) -> None:
    """Removes the records of checkpoints after a step, of which hosts that were killed have left parts.

    Otherwise one could count as complete by the new part of a host and what another had left, which it then replaces.
    """
    for name in folder.names(CHECKPOINTS):
        if (match := RECORD.fullmatch(name)) and int(match[1]) > step:
            folder.remove(name)


def remove_below(folder: Folder, prefix: str) -> None:
    """Removes everything whose name begins with the prefix."""
    for name in folder.names(prefix):
        folder.remove(name)


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
            try:
                return read_box(folder, pieces.get(name, []), box, np.dtype(target.dtype))
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


def read_box(
    folder: Folder,
    pieces: Sequence[tuple[PartRecord, Piece]],
    box: Sequence[tuple[int, int]],
    dtype: np.dtype,
) -> np.ndarray:
    """Returns the values of an array in a box, put together from the pieces that overlap it."""
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
        values = open_piece(folder, part, piece)[source or slice(None)].read().result()
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


def piece_spec(base: str, name: str) -> dict[str, Any]:
    """Returns where the array of a piece is, for tensorstore."""
    return {"driver": "zarr3", "kvstore": {"driver": "ocdbt", "base": base, "path": f"{name}/"}}
