"""Checkpoints written: each host writes its own part while the devices go on."""

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from pod_job.checkpoints.content import checksums
from pod_job.checkpoints.convert import output_folder
from pod_job.formats.checksummed_json import with_checksum
from pod_job.formats.records import encode
from pod_job.run_folder.train_identity import TrainIdentity
from pod_job.storage.folder import Folder
from pod_job.training.checkpoints import PartRecord, Piece, part_folder, piece_spec, remove_below, remove_old

log = logging.getLogger("pod_job")


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
