"""A model's weights as one orbax checkpoint, made once: `pod-job convert MODEL OUT`; then model.path=OUT.

Every host of any mesh reads its own slices from it, and no bytes of anybody else's. Configuration and tokenizer go
along, and runs keep the model's name and the checksums of its files: one begun with the original goes on with this.
"""

import contextlib
import functools
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax.numpy as jnp
import msgspec
import numpy as np
import orbax.checkpoint as orbax

from pod_job.checkpoints.checkpoint import check_checkpoint, fingerprint, fitted, read_checkpoint, weights_content
from pod_job.checkpoints.content import checksums
from pod_job.checkpoints.huggingface import TensorFiles, checkpoint_names
from pod_job.checkpoints.load import fill_from_tensors
from pod_job.checkpoints.locate import find_model, local_small_files
from pod_job.checkpoints.orbax import FORMAT, MANIFEST, Converted, Manifest, StoredWeight, read_converted
from pod_job.errors import JobError, first_line
from pod_job.models.arch import read_arch_file
from pod_job.models.weight_table import Weight
from pod_job.storage.folder import Folder, NameTaken
from pod_job.storage.open import open_folder
from pod_job.units import size_text

WEIGHTS = "weights-"
OURS = re.compile(WEIGHTS + r"[0-9a-f]{32}(\.orbax-checkpoint-tmp.*)?")
"""Names of the folders that a conversion makes, and orbax on the way to them."""
CHUNK_BYTES = 64 << 10, 4 << 20
"""Least and most of a chunk, which can be read by itself. In between a 64th of a layer: an eighth along each side."""


def convert(model: str, out_dir: str | Path, revision: str | None = None) -> Converted:
    """Writes the checkpoint unless it is there already, and returns it.

    Memory: the model once, in the dtypes of its files; for a bucket, as much disk under TMPDIR.

    Raises:
        JobError: a model that is not whole, an `out_dir` that holds another, or that cannot be written.
    """
    files, out = find_model(model, revision), open_folder(out_dir, "OUT")
    source = read_checkpoint(files.weights)
    if not isinstance(source, TensorFiles):
        raise JobError(f"MODEL={model} is converted already; use it as model.path")
    _, table = fitted(read_arch_file(files.directory / "config.json"), source, head=None)
    check_checkpoint(source, table)
    made_from = fingerprint(source), weights_content(source)
    if existing := read_converted(out):
        return confirm(existing, *made_from)
    out.check_writable()
    path = f"{WEIGHTS}{uuid.uuid4().hex}"
    arrays = {name: read_weight(source, weight) for name, weight in table.items()}
    with output_folder(out, path, sum(array.nbytes for array in arrays.values())) as local:
        write_orbax(local, arrays, table)
    for name in local_small_files(files.directory):
        create_or_match(out, name, (files.directory / name).read_bytes())
    stored = {name: StoredWeight(array.shape, str(array.dtype)) for name, array in arrays.items()}
    with contextlib.suppress(NameTaken, FileNotFoundError):  # another conversion was faster, and removed this one's
        manifest = Manifest(FORMAT, files.name, made_from[0], path, stored, made_from[1], written_files(out, path))
        out.create(MANIFEST, [msgspec.json.format(msgspec.json.encode(manifest), indent=1)])
    converted = read_converted(out)
    assert converted is not None
    remove_unfinished(out, converted)
    return confirm(converted, *made_from)


def written_files(out: Folder, path: str) -> dict[str, str]:
    """Returns the checksums of the files under `path`."""
    names = out.names(f"{path}/")
    return {name.removeprefix(f"{path}/"): value for name, value in checksums(out, names).items()}


def confirm(converted: Converted, made_from: str, source: Mapping[str, str]) -> Converted:
    """Returns the checkpoint; JobError where it was made from a model with another fingerprint or other files."""
    manifest = converted.manifest
    if manifest.fingerprint != made_from or (manifest.source and manifest.source != source):
        raise JobError(
            f"OUT={converted.folder.url} holds another model ({converted.manifest.name}); name another folder"
        )
    return converted


def read_weight(source: TensorFiles, weight: Weight) -> np.ndarray:
    """Returns all of a weight, in the dtype of its tensors; where layers differ, in one that holds them all."""
    dtypes = {source.tensors[name].dtype for name in checkpoint_names(weight)}
    array = np.empty(weight.shape, functools.reduce(jnp.promote_types, dtypes))
    fill_from_tensors(source)(weight, {tuple((0, size) for size in weight.shape): array})
    return array


def write_orbax(folder: Path, arrays: Mapping[str, np.ndarray], table: Mapping[str, Weight]) -> None:
    """Writes the orbax checkpoint `{"params": arrays}`, in chunks of which a slice of any mesh needs few others."""

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
        checkpointer.save(folder, args=orbax.args.PyTreeSave({"params": dict(arrays)}, save_args=save_args))


@contextlib.contextmanager
def output_folder(out: Folder, name: str, size: int, field: str = "OUT") -> Iterator[Path]:
    """Gives a local path, whose files are in `out` under this name afterwards: in place, or uploaded.

    `field` names `out` in messages.

    Raises:
        JobError: less than `size` bytes are free there, or it cannot be written to; nothing is left there.
    """
    local = out.local_path(name)
    # orbax by itself reaches a bucket only with gcsfs, whose credentials, retries and errors are not those of ours.
    scratch = tempfile.TemporaryDirectory() if local is None else None
    top = Path(scratch.name) if scratch else Path(out.url)
    place = f"{field}={out.url}" if scratch is None else f"TMPDIR={top.parent}"
    try:
        top.mkdir(parents=True, exist_ok=True)
        if (free := shutil.disk_usage(top).free) < size:
            raise JobError(f"{place}: {size_text(free)} are free, the weights are {size_text(size)}; free some")
        yield local or top / name
        for file in sorted(path for path in (top / name).rglob("*") if scratch and path.is_file()):
            content = np.memmap(file, np.uint8, "r").data if file.stat().st_size else b""
            out.create(f"{name}/{file.relative_to(top / name).as_posix()}", [content])
    except BaseException as error:
        for unfinished in top.glob(f"{name}*"):
            shutil.rmtree(unfinished, ignore_errors=True)
        if isinstance(error, (OSError, ValueError, RuntimeError)):  # the last two are tensorstore's
            raise JobError(f"{place}: cannot be written ({first_line(error)}); run the same command again") from error
        raise
    finally:
        if scratch:
            scratch.cleanup()


def create_or_match(out: Folder, name: str, content: bytes) -> None:
    """Creates the file; JobError where there is one with another content."""
    try:
        out.create(name, [content])
    except NameTaken:
        raise JobError(f"OUT={out.url} holds another {name}; name an empty folder") from None


def remove_unfinished(out: Folder, converted: Converted) -> None:
    """Removes weights of conversions that were cut short; the manifest exists, so none that still runs can win."""
    for name in out.names(WEIGHTS):
        if OURS.fullmatch(folder := name.partition("/")[0]) and folder != converted.manifest.path:
            out.remove(name)
    if (top := out.local_path(".")) is not None:  # where folders outlive what was in them
        for path in top.glob(f"{WEIGHTS}*"):
            if OURS.fullmatch(path.name) and path.name != converted.manifest.path:
                shutil.rmtree(path)
