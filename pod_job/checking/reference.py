"""Activations from an independent float32 reference, to hold the fast path against: prompts in, vectors out.

Hugging Face's torch model where torch is installed and the weights are files here; else our own model in float32 on one
CPU device, which shares with the fast path neither its precision nor its mesh, its packing nor its kernels.
"""

import importlib.util
from collections.abc import Sequence
from typing import cast

import numpy as np
from jaxtyping import Float, Int32

from pod_job.checkpoints.checkpoint import Checkpoint
from pod_job.checkpoints.huggingface import TensorFiles
from pod_job.config.schema import Dtype, Stored
from pod_job.planning.inputs import Inputs

TORCH, OURS = "Hugging Face transformers, torch, float32", "this model on one CPU device, float32"
LIMITS = {"float32": 1e-3, "float16": 0.1, "bfloat16": 0.1, "int8": 0.035, "float8_e4m3fn": 0.065}
"""Largest relative L2 error of a vector that rounding explains, by the coarsest dtype on its way.

Of eight bits, where the model's own rounding adds nothing: int8, a group of one value and 63 that are just rounded
away (sqrt(63) / 253); float8, all values between two (1 / 16).
"""
TINY = 1e-30  # a row of zeros is as far from itself as anything: not at all


def reference_taps(inputs: Inputs, prompts: Sequence[Int32[np.ndarray, "_"]]) -> tuple[str, list[dict]]:
    """The name of the reference, and for each prompt {tap name: [S, width] float32} of the run's taps."""
    if torch_installed() and in_local_files(inputs.checkpoint):
        return TORCH, _by_torch(inputs, prompts)
    return OURS, _by_us(inputs, prompts)


def limit_of(*dtypes: Dtype | Stored) -> float:
    """The limit for a vector that went through these dtypes."""
    return max(LIMITS[dtype.value] for dtype in dtypes)


def torch_installed() -> bool:
    return importlib.util.find_spec("torch") is not None


def in_local_files(checkpoint: Checkpoint) -> bool:
    """Whether the weights are where Hugging Face's library can load them."""
    return isinstance(checkpoint, TensorFiles) and checkpoint.folder.local_path(".") is not None


def relative_errors(found: Float[np.ndarray, "R D"], truth: Float[np.ndarray, "R D"]) -> Float[np.ndarray, "R"]:
    """Of each row: the length of the difference over the length of the truth; infinite where `found` is not finite."""
    found, truth = found.astype(np.float64), truth.astype(np.float64)
    errors = np.linalg.norm(found - truth, axis=1) / np.maximum(np.linalg.norm(truth, axis=1), TINY)
    return np.where(np.isfinite(errors), errors, np.inf)


def _by_torch(inputs: Inputs, prompts: Sequence[np.ndarray]) -> list[dict]:
    from pod_job.checking.hf_reference import load_reference, run_reference

    model, names = load_reference(inputs.model_dir), {tap.name for tap in inputs.taps}
    return [{name: tap[0] for name, tap in run_reference(model, prompt[None], names).items()} for prompt in prompts]


def _by_us(inputs: Inputs, prompts: Sequence[np.ndarray]) -> list[dict]:
    import jax
    import jax.numpy as jnp

    from pod_job.checkpoints.load import load_params
    from pod_job.models.decoder import Decoder, Output

    # Present beside an accelerator, too; its float32 is float32.
    here = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    params = load_params(inputs.checkpoint, inputs.table, jnp.float32, dict.fromkeys(inputs.table, here))
    model = Decoder(inputs.arch, inputs.taps, jnp.float32)

    @jax.jit
    def forward(params: dict, token_ids: jax.Array, segment_ids: jax.Array) -> dict:
        output = model.apply(params, token_ids, segment_ids=segment_ids, return_activations=True, return_logits=False)
        return cast(Output, output).activations

    longest = max(map(len, prompts))  # one program for all of them
    found = []
    for prompt in prompts:
        token_ids, segment_ids = np.zeros((2, 1, longest), np.int32)
        token_ids[0, : len(prompt)], segment_ids[0, : len(prompt)] = prompt, 1
        placed = (jax.device_put(array, here) for array in (token_ids, segment_ids))
        taps = forward(params, *placed)
        found.append({name: np.asarray(tap)[0, : len(prompt)] for name, tap in taps.items()})
    return found
