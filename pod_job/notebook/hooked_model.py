"""A model with hooks and real weights, in one call: `load_model("Qwen/Qwen2.5-0.5B", layers_to_extract=[6, 12])`."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pod_job.checkpoints.checkpoint import check_checkpoint, fitted, read_checkpoint
from pod_job.checkpoints.load import load_params
from pod_job.checkpoints.locate import find_model
from pod_job.models import create_model_with_hooks
from pod_job.models.arch import read_arch_file
from pod_job.models.decoder import Decoder
from pod_job.progress import progress_bar
from pod_job.prompts.tokenizer import load_tokenizer


class Loaded(NamedTuple):
    model: Decoder
    params: dict[str, dict[str, jax.Array]]
    tokenizer: Any


class LoadedModel(Loaded):
    """A model, its weights and its tokenizer: `model, params, tokenizer = load_model(...)`; `path`: where they are."""

    path: str


def load_model(
    path_or_name: str,
    layers_to_extract: Sequence[int] | None = None,
    *,
    taps: Sequence[str] = (),
    dtype: str | type | jnp.dtype = "float32",
    revision: str | None = None,
) -> LoadedModel:
    """Returns a hooked model with its weights on the first device, and its tokenizer.

        model, params, tokenizer = load_model("Qwen/Qwen2.5-0.5B", layers_to_extract=[6, 12, 18, 23])
        input_ids = tokenizer("Hello", return_tensors="np")["input_ids"]
        apply = jax.jit(lambda params, ids: model.apply(params, ids, return_activations=True))
        logits, activations = apply(params, input_ids)

    Args:
        path_or_name: a Hugging Face folder, one from `pod-job convert`, gs://bucket/folder, or a name on the hub.
        layers_to_extract, taps, dtype: as in `create_model_with_hooks`.
        revision: commit, tag or branch of the hub's repository.
    Raises:
        JobError: a model that is not there, is of another family, or has weights missing; a layer it does not have.
    """
    files = find_model(path_or_name, revision)
    checkpoint = read_checkpoint(files.weights)
    arch, table = fitted(read_arch_file(files.directory / "config.json"), checkpoint)
    model = create_model_with_hooks(arch, layers_to_extract, taps=taps, dtype=dtype)
    tokenizer = load_tokenizer(files.directory)
    check_checkpoint(checkpoint, table)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    params = load_params(checkpoint, table, model.dtype, dict.fromkeys(table, device), progress_bar)
    loaded = LoadedModel(model, params, tokenizer)
    loaded.path = path_or_name
    return loaded
