"""A trained SAE: its parameters for rows as they are stored, and the record of what it was trained on.

D input width, F latents.
"""

from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from jaxtyping import Float

from pod_job.config.train import Architecture
from pod_job.errors import JobError
from pod_job.formats.records import Count
from pod_job.run_folder.identity import Identity
from pod_job.training.architectures.shape import SaeShape, check_shape

Parameters = dict[str, np.ndarray]
"""Parameters in float32 by the names of `architectures.parts.Params`."""
Scale = float | Float[np.ndarray, "width"]
WITH_THRESHOLD = (Architecture.batch_topk, Architecture.matryoshka, Architecture.jump_relu)
"""Architectures that keep what is above a threshold, at inference."""


class SaeOrigin(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Training of an SAE; None for what is not recorded.

    Attributes:
        taps: names of the taps that are encoded, more than one of a crosscoder.
        target: name of the tap that is decoded, of a transcoder.
        shape: the SAE's own, where the layout has no name for it.
        identity: everything that the rows depend on: model, tokenizer, data.
        input_scale, target_scale: what rows were multiplied by in training; they are part of the parameters here.
        data: where the rows came from, in words.
        settings: of the training, as JSON.
    """

    name: str | None = None
    model: str | None = None
    taps: tuple[str, ...] = ()
    target: str | None = None
    shape: SaeShape | None = None
    identity: Identity | None = None
    input_scale: float | None = None
    target_scale: float | None = None
    rows: Count | None = None
    steps: Count | None = None
    data: str | None = None
    context_size: Count | None = None
    settings: dict[str, object] | None = None
    versions: dict[str, str] | None = None
    created: str | None = None


NOT_RECORDED = SaeOrigin()


@dataclass(frozen=True)
class TrainedSae:
    """An SAE as it is written and read.

    Attributes:
        shape: its sizes and its architecture.
        parameters: those of rows that are not scaled.
        origin: its training.
    """

    shape: SaeShape
    parameters: Parameters
    origin: SaeOrigin = NOT_RECORDED

    @property
    def thresholds(self) -> Float[np.ndarray, "F"]:
        """Value of each latent above which it is kept; 0 where there is no threshold."""
        latents = self.shape.latents
        if "log_threshold" in self.parameters:
            return np.exp(self.parameters["log_threshold"])
        return np.full(latents, max(float(self.parameters.get("threshold", 0.0)), 0.0), np.float32)

    def encode(self, rows: np.ndarray) -> Float[np.ndarray, "N F"]:
        """Returns the latents of rows, in float32.

        Args:
            rows: [N, D], as an ActivationDataset has them; of a crosscoder those of its taps side by side.
        """
        from pod_job.training.architectures import kinds  # imports jax, which who reads names or weights does not need

        params, given = self._on_device(rows)
        return np.asarray(kinds.encode(self.shape, params, given))

    def decode(self, latents: np.ndarray, rows: np.ndarray) -> Float[np.ndarray, "N O"]:
        """Returns the rows that the SAE makes of latents [N, F], in float32.

        Args:
            rows: those that were encoded, which a skip connection adds to.
        """
        from pod_job.training.architectures import kinds

        params, given, encoded = self._on_device(rows, latents)
        return np.asarray(kinds.decode(self.shape, params, encoded, given))

    def _on_device(self, *values: np.ndarray) -> tuple[Any, ...]:
        import jax.numpy as jnp

        params = {name: jnp.asarray(value) for name, value in self.parameters.items()}
        return params, *(jnp.asarray(value, jnp.float32) for value in values)


def parameter_shapes(shape: SaeShape) -> dict[str, tuple[int, ...]]:
    """Returns the size of each parameter that an SAE has."""
    D, F, output = shape.input_width, shape.latents, shape.output_width
    sizes: dict[str, tuple[int, ...]] = {
        "encoder": (D, F),
        "encoder_bias": (F,),
        "decoder": (F, output),
        "decoder_bias": (output,),
    }
    match shape.architecture:
        case Architecture.gated:
            sizes |= {"gate_bias": (F,), "gate_scale": (F,)}
        case Architecture.jump_relu:
            sizes |= {"log_threshold": (F,)}
        case Architecture.batch_topk | Architecture.matryoshka:
            sizes |= {"threshold": ()}
    return sizes | ({"skip": (D, output)} if shape.skip else {})


def check_sae(sae: TrainedSae, name: str) -> TrainedSae:
    """Returns the SAE. JobError where a parameter is missing, of another size or not finite, or its taps are others."""
    check_shape(sae.shape, name)
    if sae.origin.taps and len(sae.origin.taps) != sae.shape.taps:
        raise JobError(f"{name}: names {len(sae.origin.taps):,} taps, and is an SAE of {sae.shape.taps}")
    expected = parameter_shapes(sae.shape)
    if expected.keys() != sae.parameters.keys():
        raise JobError(f"{name}: has {sorted(sae.parameters)}, where its architecture has {sorted(expected)}")
    for parameter, size in expected.items():
        values = sae.parameters[parameter]
        if values.shape != size:
            raise JobError(f"{name}: {parameter} is {list(values.shape)}, and the others are of {list(size)}")
        allowed = np.isneginf(values) if parameter == "log_threshold" else False  # the threshold 0
        if not np.all(np.isfinite(values) | allowed):
            raise JobError(f"{name}: {parameter} has values that are not finite; train it again, or copy it again")
    return sae


def folded(shape: SaeShape, parameters: Parameters, input_scale: Scale, output_scale: Scale) -> Parameters:
    """Returns the parameters for rows that are not scaled, of those for rows that are.

    Latents are divided by the scale of the output, so that the norms of the decoder's rows stay as they are.

    Args:
        input_scale: what rows were multiplied by in training, or each of their dimensions.
        output_scale: likewise of the target; equal to `input_scale` unless for a transcoder.
    """
    output = np.asarray(output_scale, np.float64)
    latent = float(np.exp(np.mean(np.log(output))))
    factors = {
        "encoder": np.reshape(np.asarray(input_scale, np.float64), (-1, 1)) / latent,
        "decoder": latent / output,
        "decoder_bias": 1 / output,
        "skip": np.reshape(np.asarray(input_scale, np.float64), (-1, 1)) / output,
        "gate_scale": 1.0,
    }
    scaled = {
        name: values * factors.get(name, 1 / latent) for name, values in parameters.items() if name != "log_threshold"
    }
    if "log_threshold" in parameters:
        scaled["log_threshold"] = parameters["log_threshold"] - np.log(latent)
    return {name: np.asarray(values, np.float32) for name, values in scaled.items()}


def at_taps(sae: TrainedSae, tap: str | None, target: str | None) -> TrainedSae:
    """Returns the SAE of these taps, where they are given and not those that its files name."""
    origin = msgspec.structs.replace(
        sae.origin, taps=(tap,) if tap else sae.origin.taps, target=target or sae.origin.target
    )
    return TrainedSae(sae.shape, sae.parameters, origin)
