"""A model's weights as one orbax checkpoint, made once: `pod-job convert MODEL OUT`; then model.path=OUT.

Every host of any mesh reads its own slices from it, and no bytes of anybody else's. Configuration and tokenizer go
along, and runs keep the model's name and fingerprint: one begun with the original goes on with this.
"""

import contextlib
import functools
import json
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as orbax

from pod_job.checkpoints.checkpoint import check_checkpoint, fingerprint, read_checkpoint
from pod_job.checkpoints.huggingface import HEAD, TensorFiles, checkpoint_names
from pod_job.checkpoints.load import fill_from_tensors
from pod_job.checkpoints.locate import find_model, small_files
from pod_job.checkpoints.orbax import FORMAT, MANIFEST, Converted, Stored, read_converted
from pod_job.errors import JobError
from pod_job.models.arch import read_arch_file
from pod_job.models.weight_table import Weight, weight_table
from pod_job.storage.folder import Folder, NameTaken
from pod_job.storage.open import open_folder

WEIGHTS = "weights-"
CHUNK_BYTES = 64 << 10, 4 << 20
"""Of what can be read by itself: at least, at most. In between a 64th of a layer: an eighth along each side."""


def convert(model: str, out_dir: str | Path, revision: str | None = None) -> Converted:
    """Writes the checkpoint, or finds that it is there.

    Memory: the model once, in the dtypes of its files; for a bucket, as much disk under TMPDIR.

    Raises:
        JobError: a model that is not whole, an `out_dir` that holds another, or that cannot be written.
    """
    files, out = find_model(model, revision), open_folder(out_dir, "OUT")
    source = read_checkpoint(files.weights)
    if not isinstance(source, TensorFiles):
        raise JobError(f"MODEL={model} is converted already; use it as model.path")
    arch = read_arch_file(files.directory / "config.json")
    table = weight_table(arch, head=HEAD in source.tensors)
    check_checkpoint(source, table)
    made_from = fingerprint(source)
    if there := read_converted(out):
        return confirmed(there, made_from)
    out.check_writable()
    path = f"{WEIGHTS}{uuid.uuid4().hex}"
    arrays = {name: whole(source, weight) for name, weight in table.items()}
    with written_into(out, path) as place:
        write_orbax(place, arrays, table)
    for name in small_files([file.name for file in files.directory.iterdir()]):
        keep(out, name, (files.directory / name).read_bytes())
    stored = {name: asdict(Stored(array.shape, str(array.dtype))) for name, array in arrays.items()}
    manifest = {"format": FORMAT, "name": files.name, "fingerprint": made_from, "path": path, "weights": stored}
    with contextlib.suppress(NameTaken):  # another conversion was faster
        out.create(MANIFEST, [json.dumps(manifest, indent=1).encode()])
    converted = read_converted(out)
    assert converted is not None
    remove_unfinished(out, converted)
    return confirmed(converted, made_from)


def confirmed(converted: Converted, made_from: str) -> Converted:
    if converted.fingerprint != made_from:
        raise JobError(f"OUT={converted.folder.url} holds another model ({converted.name}); name another folder")
    return converted


def whole(source: TensorFiles, weight: Weight) -> np.ndarray:
    """All of a weight, in the dtype of its tensors; where layers differ, in one that holds them all."""
    dtypes = {source.tensors[name].dtype for name in checkpoint_names(weight)}
    array = np.empty(weight.shape, functools.reduce(jnp.promote_types, dtypes))
    fill_from_tensors(source)(weight, {tuple((0, size) for size in weight.shape): array})
    return array


def write_orbax(place: Path, arrays: Mapping[str, np.ndarray], table: Mapping[str, Weight]) -> None:
    """The orbax checkpoint `{"params": arrays}`, in chunks small enough that a slice of any mesh needs few others."""

    def chunks(name: str, array: np.ndarray) -> orbax.SaveArgs:
        layer = array[0] if table[name].stacked else array
        least, most = CHUNK_BYTES
        if layer.nbytes <= least:
            return orbax.SaveArgs()
        size = min(max(layer.nbytes // 64, least), most)
        return orbax.SaveArgs(chunk_byte_size=size, shard_axes=(0,) if table[name].stacked else ())

    handler = orbax.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=True)
    with orbax.Checkpointer(handler) as checkpointer:
        save_args = {"params": {name: chunks(name, array) for name, array in arrays.items()}}
        checkpointer.save(place, args=orbax.args.PyTreeSave({"params": dict(arrays)}, save_args=save_args))


@contextlib.contextmanager
def written_into(out: Folder, name: str) -> Iterator[Path]:
    """A local path for a folder that is in `out` under this name afterwards: there itself, or uploaded."""
    if (there := out.local_path(name)) is not None:
        yield there
        return
    # orbax by itself reaches a bucket only with gcsfs, whose credentials, retries and errors are not those of ours.
    with tempfile.TemporaryDirectory() as scratch:
        here = Path(scratch) / name
        yield here
        for file in sorted(path for path in here.rglob("*") if path.is_file()):
            content = np.memmap(file, np.uint8, "r").data if file.stat().st_size else b""
            out.create(f"{name}/{file.relative_to(here).as_posix()}", [content])


def keep(out: Folder, name: str, content: bytes) -> None:
    try:
        out.create(name, [content])
    except NameTaken:
        raise JobError(f"OUT={out.url} holds another {name}; name an empty folder") from None


def remove_unfinished(out: Folder, converted: Converted) -> None:
    """Weights of conversions that were cut short. The manifest is there: none that still runs can win any more."""
    for name in out.names(WEIGHTS):
        if not name.startswith(f"{converted.path}/"):
            out.remove(name)
    if (top := out.local_path(".")) is not None:  # where folders outlive what was in them
        for folder in top.glob(f"{WEIGHTS}*"):
            if folder.name != converted.path:
                shutil.rmtree(folder)
