"""Checkpoints: from a Hugging Face folder or hub name to parameters on the mesh, each host reading its slices only.

Reading and checking headers needs no jax and no weights in memory; `load_params` is the only part that does.
"""

import functools
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pod_job.errors import JobError
from pod_job.models.weight_table import Weight
from pod_job.run_folder.tensorfile import map_tensors

MODEL_FILES = ["config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer*"]

# In some checkpoints, never parameters: derived buffers, and the output matrix of a model whose embedding serves.
DERIVED = re.compile(r".*\.rotary_emb\.inv_freq|lm_head\.weight")

# In a checkpoint with vision (Gemma 3): how the text model's tensors are called there and alone, and the other parts.
TEXT_PREFIXES = {
    "language_model.model.": "model.",
    "model.language_model.": "model.",
    "language_model.lm_head.": "lm_head.",
}
VISION_PREFIXES = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")


Checkpoint = dict[str, np.ndarray]  # tensors by name, on memory maps: nothing is read before it is used


def find_model(path: str, revision: str | None = None) -> Path:
    """The folder of a model: a local one as it is, a hub name after download into the hub's own cache.

    Raises:
        JobError: neither a folder nor a model that the hub (or its cache) can give.
    """
    folder = Path(path)
    if folder.is_dir():
        return folder
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", path) or folder.exists():
        raise JobError(f"model.path={path} is not a folder; give a Hugging Face folder or a hub name (org/model)")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(path, revision=revision, allow_patterns=MODEL_FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise JobError(f"model.path={path} is no local folder and cannot be had from the hub: {reason}") from error


def read_checkpoint(folder: Path) -> Checkpoint:
    """Every tensor of the folder's safetensors files by name; headers are checked, no weight is read.

    Of a model with vision, the tensors of its text model, under the names that a text model has.

    Raises:
        JobError: no safetensors file, one named in the index missing, a truncated file, a tensor in two files.
    """
    index = folder / "model.safetensors.index.json"
    if (whole := folder / "model.safetensors").is_file():
        files = [whole]
    elif index.is_file():
        files = sorted({folder / name for name in json.loads(index.read_text())["weight_map"].values()})
    else:
        raise JobError(f"model.path={folder} has neither {whole.name} nor {index.name}; convert it to safetensors")
    checkpoint: Checkpoint = {}
    for path in files:
        if not path.is_file():
            raise JobError(f"model.path={folder}: {path.name} is named in {index.name} but missing; download it again")
        tensors = map_tensors(path)
        if doubled := sorted(tensors.keys() & checkpoint.keys()):
            raise JobError(f"model.path={folder}: tensor {doubled[0]} of {path.name} is in another file too")
        checkpoint |= tensors
    return of_text_model(checkpoint)


def of_text_model(checkpoint: Checkpoint) -> Checkpoint:
    renamed: Checkpoint = {}
    for name, tensor in checkpoint.items():
        if not name.startswith(VISION_PREFIXES):
            prefix = next((prefix for prefix in TEXT_PREFIXES if name.startswith(prefix)), "")
            renamed[TEXT_PREFIXES.get(prefix, "") + name.removeprefix(prefix)] = tensor
    return renamed


def checkpoint_names(weight: Weight) -> list[str]:
    if not weight.stacked:
        return [weight.checkpoint_name]
    return [weight.checkpoint_name.format(layer) for layer in range(weight.shape[0])]


def check_checkpoint(checkpoint: Checkpoint, table: Mapping[str, Weight]) -> None:
    """Raises JobError naming the first tensor that is missing, misshapen or unknown."""
    known = set()
    for weight in table.values():
        for name in checkpoint_names(weight):
            known.add(name)
            if name not in checkpoint:
                raise JobError(f"checkpoint: tensor {name} {list(weight.checkpoint_shape)} is missing")
            shape = checkpoint[name].shape
            if shape != weight.checkpoint_shape:
                raise JobError(
                    f"checkpoint: tensor {name} is {list(shape)}, but config.json says {list(weight.checkpoint_shape)}"
                )
    extra = sorted(name for name in checkpoint.keys() - known if not DERIVED.fullmatch(name))
    if extra:
        raise JobError(f"checkpoint: tensor {extra[0]} is not part of this model ({len(extra)} such); wrong config?")


def fingerprint(checkpoint: Checkpoint) -> str:
    """SHA-256 over every tensor's name, dtype, shape and first 4 KiB: tells checkpoints apart without reading them."""
    digest = hashlib.sha256()
    for name, tensor in sorted(checkpoint.items()):
        digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
        digest.update(tensor.reshape(-1).view(np.uint8)[:4096].tobytes())
    return digest.hexdigest()


def load_params(checkpoint: Checkpoint, table: Mapping[str, Weight], dtype: Any, shardings: Mapping[str, Any]) -> Any:
    """Parameters `{"params": {name: array}}` placed by `shardings`; only this host's slices are read and cast.

    Files are memory-mapped, so a slice costs its own bytes, whatever the size of its file.
    """
    import jax

    def part(weight: Weight, index: Any) -> np.ndarray:
        if not weight.stacked:
            return one(weight, weight.checkpoint_name, weight.shape, index)
        layers = range(*index[0].indices(weight.shape[0]))
        names = [weight.checkpoint_name.format(layer) for layer in layers]
        return np.stack([one(weight, name, weight.shape[1:], index[1:]) for name in names])

    def one(weight: Weight, name: str, shape: tuple[int, ...], index: tuple[slice, ...]) -> np.ndarray:
        tensor = checkpoint[name]
        ours = tensor.T.reshape(shape) if weight.linear else tensor.reshape(shape)
        return ours[index].astype(dtype)

    params = {
        name: jax.make_array_from_callback(weight.shape, shardings[name], functools.partial(part, weight))
        for name, weight in table.items()
    }
    return {"params": params}
