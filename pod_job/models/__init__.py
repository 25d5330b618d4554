"""Hooked language models: `create_model_with_hooks(config, layers_to_extract)`.

jax is imported when a model is made, not before: the launcher reads the weight table in this package without it.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from pod_job.models.arch import Arch, read_arch
from pod_job.models.taps import resolve

if TYPE_CHECKING:
    from pod_job.models.decoder import Decoder


@runtime_checkable
class HuggingFaceConfig(Protocol):
    """A `transformers.PretrainedConfig`."""

    def to_dict(self) -> dict[str, Any]: ...


def create_model_with_hooks(
    config: Arch | Mapping[str, Any] | HuggingFaceConfig,
    layers_to_extract: Sequence[int] | None = None,
    *,
    taps: Sequence[str] = (),
    dtype: str | type | np.dtype = "float32",
) -> "Decoder":
    """Returns a decoder whose `apply` also returns intermediate activations.

        model = create_model_with_hooks(config, layers_to_extract=[6, 12])
        logits, activations = model.apply(params, input_ids, return_activations=True)
        activations["layer_6"]  # [batch, seq_len, hidden_dim]

    Args:
        config: a Hugging Face configuration (object or dictionary), or an `Arch`.
        layers_to_extract: layers whose output is returned as `layer_{i}`; None with no `taps` means all.
        taps: further taps by name or wildcard, such as `"layer_24_norm"` or `"layer_*.attn_out"`.
        dtype: of weights and compute.

    Raises:
        JobError: a family we do not have, a key missing in `config`, a layer or tap that does not exist.
    """
    import jax.numpy as jnp

    from pod_job.models.decoder import Decoder

    if not isinstance(config, Arch | Mapping):
        config = config.to_dict()
    arch = config if isinstance(config, Arch) else read_arch(config)
    return Decoder(arch, resolve(layers_to_extract, taps, arch), jnp.dtype(dtype))
