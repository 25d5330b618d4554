"""The reference that vectors are held against: which one there is, and its taps.

The first choice is Hugging Face's model in torch, where torch is installed and the weights are local files. Otherwise
it is what Hugging Face's model gave where the job was started, which `run` ships with the run; and where that does not
fit, the decoder in NumPy, which is independent of the model but was written by the same people.
"""

import importlib.util
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import ml_dtypes  # noqa: F401  so that numpy knows bfloat16 by its name
import numpy as np
from jaxtyping import Float, Int32

from pod_job.checking.hf_tensors import HfTensors
from pod_job.checking.numpy_decoder import COVERED, numpy_taps
from pod_job.checking.shipped import Shipped
from pod_job.checkpoints.checkpoint import Checkpoint
from pod_job.checkpoints.huggingface import TensorFiles
from pod_job.errors import JobError
from pod_job.models.weight_table import weight_table
from pod_job.planning.host_checks import available_memory
from pod_job.planning.inputs import Inputs
from pod_job.units import GB

TORCH = "Hugging Face transformers, torch, float32"
SHIPPED = f"{TORCH}, computed where the job was started"
BUILT_IN = "the built-in decoder in NumPy, float32"
TORCH_MEMORY = 1.5
"""Memory that Hugging Face's model takes at most while it loads, in sizes of its float32 weights."""

log = logging.getLogger("pod_job")


@dataclass(frozen=True)
class Reference:
    """Taps of sequences that lie one behind the other, and as taps of width 1 the run's columns by the model.

    Attributes:
        truths: in float32, by tap.
        errors: of the same rows in the run's dtype, by the reference's own program, see `tap_errors`.
        lengths: of the sequences.
        why_built_in: why it is not Hugging Face's; None where it is.
    """

    name: str
    truths: dict[str, Float[np.ndarray, "T _"]]
    errors: dict[str, Float[np.ndarray, "T"]]
    lengths: tuple[int, ...]
    why_built_in: str | None = None

    def rows(self, sequence: int, positions: range) -> slice:
        """Returns where the positions of a sequence lie."""
        start = sum(self.lengths[:sequence])
        return slice(start + positions.start, start + positions.stop)


def find_reference(
    inputs: Inputs, sequences: Sequence[Int32[np.ndarray, "_"]], shipped: Shipped | str = "it was not asked for"
) -> Reference:
    """Returns the best reference there is, for the run's taps and columns and these token ids; logs which one.

    Args:
        shipped: that which came with the run and fits; or why there is none, for people.
    """
    lengths = tuple(map(len, sequences))
    names, dtype = set(inputs.compared_widths), inputs.config.model.dtype.value
    reason = why_no_torch(inputs)
    if reason is None:
        from pod_job.checking.hf_reference import NotLoaded, hf_taps

        try:
            return Reference(TORCH, *hf_taps(inputs.model_dir, sequences, names, dtype), lengths)
        except NotLoaded as error:
            reason = str(error)
    if isinstance(shipped, Shipped):
        return Reference(SHIPPED, shipped.truths, shipped.errors, lengths)
    reason = f"{reason}, and none came with the run: {shipped}"
    if inputs.arch.family not in COVERED:
        raise JobError(
            f"parity: no reference for {inputs.arch.family}, which {BUILT_IN} does not cover ({reason}); install torch "
            "where the job is started, which ships a reference, or on host 0, or set parity.samples=0"
        )
    log.warning("vectors are held against %s, not against Hugging Face's model: %s", BUILT_IN, reason)
    return Reference(BUILT_IN, *_built_in_taps(inputs, sequences, names), lengths, reason)


def why_no_torch(inputs: Inputs) -> str | None:
    """Returns why Hugging Face's model cannot run here; None where it can."""
    if not torch_installed():
        return "torch is not installed here"
    if not in_local_files(inputs.checkpoint):
        return f"model.path={inputs.config.model.path} has no weights in local safetensors files"
    needed = TORCH_MEMORY * sum(4 * math.prod(weight.shape) for weight in weight_table(inputs.arch).values())
    available = available_memory()
    if available is not None and needed > available:
        return f"the model in float32 takes {needed / GB:,.1f} GB, and {available / GB:,.1f} GB of memory are free here"
    return None


def torch_installed() -> bool:
    return importlib.util.find_spec("torch") is not None


def in_local_files(checkpoint: Checkpoint) -> bool:
    """Returns whether the weights are local safetensors files, which Hugging Face's library can load."""
    return isinstance(checkpoint, TensorFiles) and checkpoint.folder.local_path(".") is not None


def _built_in_taps(
    inputs: Inputs, sequences: Sequence[np.ndarray], names: set[str]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(
        str(inputs.model_dir), local_files_only=True, trust_remote_code=False
    ).get_text_config()
    tensors = HfTensors(inputs.checkpoint, inputs.table)
    return numpy_taps(config, tensors, sequences, names, np.dtype(inputs.config.model.dtype.value), _product)


def _product(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Returns x times the transpose of a weight; by jax, as NumPy has a single thread on hosts."""
    import jax

    # jax has a CPU device beside any accelerator; its float32 products are not rounded to bfloat16 or TF32.
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        dimensions = (((1,), (1,)), ((), ()))
        return np.asarray(jax.lax.dot_general(x, weight, dimensions, precision=jax.lax.Precision.HIGHEST))
