"""Activations from an independent float32 reference, to compare the run's programs with.

The reference is Hugging Face's torch model where torch is installed and the weights are local files; else the model of
this package in float32 on one CPU device, which shares neither precision, mesh, packing nor kernels with the run.
"""

import importlib.util
from collections.abc import Sequence
from typing import cast

import numpy as np
from jaxtyping import Float, Int32

from pod_job.checkpoints.checkpoint import Checkpoint
from pod_job.checkpoints.huggingface import TensorFiles
from pod_job.config.schema import Dtype, StoredDtype
from pod_job.planning.inputs import Inputs

TORCH, OURS = "Hugging Face transformers, torch, float32", "this model on one CPU device, float32"
LIMITS = {"float32": 1e-3, "float16": 0.1, "bfloat16": 0.1, "int8": 0.035, "float8_e4m3fn": 0.065}
"""Largest relative L2 error of a vector that rounding explains, by the coarsest dtype on its way.

Those of eight bits are the worst cases of their rounding: int8, a group of one value and 63 that are just rounded
away (sqrt(63) / 253); float8, all values half-way between two steps (1 / 16).
"""
TINY = 1e-30
"""Least norm to divide by, so that a row of zeros agrees with zeros."""


def reference_taps(
    inputs: Inputs, prompts: Sequence[Int32[np.ndarray, "_"]]
) -> tuple[str, list[dict[str, np.ndarray]]]:
    """Returns the name of the reference, and for every prompt {tap name: [S, width] float32} of the run's taps."""
    if torch_installed() and in_local_files(inputs.checkpoint):
        return TORCH, _torch_taps(inputs, prompts)
    return OURS, _own_taps(inputs, prompts)


def limit_of(*dtypes: Dtype | StoredDtype) -> float:
    """Returns the largest relative error that rounding explains for a vector that went through these dtypes."""
    return max(LIMITS[dtype.value] for dtype in dtypes)


def torch_installed() -> bool:
    return importlib.util.find_spec("torch") is not None


def in_local_files(checkpoint: Checkpoint) -> bool:
    """Returns whether the weights are local safetensors files, which Hugging Face's library can load."""
    return isinstance(checkpoint, TensorFiles) and checkpoint.folder.local_path(".") is not None


def relative_errors(vectors: Float[np.ndarray, "R D"], truth: Float[np.ndarray, "R D"]) -> Float[np.ndarray, "R"]:
    """Returns the relative L2 error of every row; infinite where a vector is not finite."""
    vectors, truth = vectors.astype(np.float64), truth.astype(np.float64)
    errors = np.linalg.norm(vectors - truth, axis=1) / np.maximum(np.linalg.norm(truth, axis=1), TINY)
    return np.where(np.isfinite(errors), errors, np.inf)


def _torch_taps(inputs: Inputs, prompts: Sequence[np.ndarray]) -> list[dict[str, np.ndarray]]:
    from pod_job.checking.hf_reference import load_reference, run_reference

    model, names = load_reference(inputs.model_dir), {tap.name for tap in inputs.taps}
    return [{name: tap[0] for name, tap in run_reference(model, prompt[None], names).items()} for prompt in prompts]


def _own_taps(inputs: Inputs, prompts: Sequence[np.ndarray]) -> list[dict[str, np.ndarray]]:
    import jax
    import jax.numpy as jnp

    from pod_job.checkpoints.load import load_params
    from pod_job.models.decoder import Decoder, Output

    # jax has a CPU device beside any accelerator; its float32 products are not rounded to bfloat16 or TF32.
    cpu = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    params = load_params(inputs.checkpoint, inputs.table, jnp.float32, dict.fromkeys(inputs.table, cpu))
    model = Decoder(inputs.arch, inputs.taps, jnp.float32)

    @jax.jit
    def forward(params: dict, token_ids: jax.Array, segment_ids: jax.Array) -> dict:
        output = model.apply(params, token_ids, segment_ids=segment_ids, return_activations=True, return_logits=False)
        return cast(Output, output).activations

    longest = max(map(len, prompts))  # one program for all prompts
    activations = []
    for prompt in prompts:
        token_ids, segment_ids = np.zeros((2, 1, longest), np.int32)
        token_ids[0, : len(prompt)], segment_ids[0, : len(prompt)] = prompt, 1
        placed = (jax.device_put(array, cpu) for array in (token_ids, segment_ids))
        taps = forward(params, *placed)
        activations.append({name: np.asarray(tap)[0, : len(prompt)] for name, tap in taps.items()})
    return activations
