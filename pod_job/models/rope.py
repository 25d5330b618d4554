"""Rotary position embeddings: from the spellings of a Hugging Face `config.json` to one frequency per pair. No jax.

R = H/2 pairs of a head of size H.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from pod_job.errors import JobError
from pod_job.models.config_values import number, positive

_ALL = frozenset({"rope_type", "type", "rope_theta"})
_SCALED = _ALL | {"factor", "original_max_position_embeddings"}
KINDS = {
    "default": _SCALED,  # which ignores what is of scaling alone
    "linear": _SCALED,
    "dynamic": _SCALED,
    "llama3": _SCALED | {"low_freq_factor", "high_freq_factor"},
    "yarn": _SCALED | {"beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate"},
    "longrope": _SCALED | {"short_factor", "long_factor", "attention_factor"},
}
"""Rope types that are computed here, and the settings that each of them has in transformers."""
LAYER_TYPES = frozenset({"full_attention", "sliding_attention"})


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Base frequency, and the change of the frequencies for a longer context than in the first training."""

    theta: float
    kind: str = "default"
    factor: float = 1.0
    original_positions: int = 8192
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0
    whole_bounds: bool = True
    attention_factor: float = 1.0  # multiplies rotated queries and rotated keys
    short_factors: tuple[float, ...] = ()  # longrope: of sequences up to `original_positions`
    long_factors: tuple[float, ...] = ()  # and of longer ones

    def frequencies(self, head_dim: int, long: bool = False) -> Float[np.ndarray, "R"]:
        """Returns radians per position for each pair of a head's dimensions, float32, as transformers does.

        `long`: of a sequence of more than `original_positions`; it matters to longrope only.
        """
        exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
        base = (1.0 / np.float32(self.theta) ** exponents).astype(np.float32)
        match self.kind:
            case "longrope":
                return (base / np.array(self.long_factors if long else self.short_factors)).astype(np.float32)
            case "linear":
                unscaled = np.zeros_like(base)
            case "llama3":
                unscaled = self._unscaled_by_llama3(base)
            case "yarn":
                unscaled = self._unscaled_by_yarn(head_dim)
            case _:
                return base
        return ((1 - unscaled) * base / self.factor + unscaled * base).astype(np.float32)

    def _unscaled_by_llama3(self, base: Float[np.ndarray, "R"]) -> Float[np.ndarray, "R"]:
        """Returns 1 where a frequency stays, 0 where it is divided: past `original_positions / low_freq_factor`."""
        wavelength = 2 * math.pi / base
        blend = self.original_positions / wavelength - self.low_freq_factor
        return np.clip(blend / (self.high_freq_factor - self.low_freq_factor), 0.0, 1.0)

    def _unscaled_by_yarn(self, head_dim: int) -> Float[np.ndarray, "R"]:
        """Returns 1 for pairs that turn over `beta_fast` times in the original context, 0 under `beta_slow`.

        In between, a ramp: section 3.2 of YaRN (arXiv:2309.00071).
        """

        def pair_that_turns(times: float) -> float:
            return head_dim * math.log(self.original_positions / (times * 2 * math.pi)) / (2 * math.log(self.theta))

        low, high = pair_that_turns(self.beta_fast), pair_that_turns(self.beta_slow)
        if self.whole_bounds:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, head_dim - 1)
        ramp = (np.arange(head_dim // 2, dtype=np.float32) - low) / max(high - low, 0.001)
        return 1 - np.clip(ramp, 0.0, 1.0)


def read_rope(values: Mapping[str, Any], layer_type: str, source: str) -> Rope:
    """Returns the rotary embedding of layers of `layer_type` (`full_attention` or `sliding_attention`).

    `values["rope_parameters"]` is as transformers resolves it: one table, or one for each layer type.

    Raises:
        JobError: a kind that is not in KINDS, a number missing or out of range, a setting that is not applied.
    """
    parameters = values["rope_parameters"]
    scaling = parameters[layer_type] if isinstance(parameters.get(layer_type), Mapping) else parameters
    kind = scaling.get("rope_type", "default")
    if kind not in KINDS:
        raise JobError(f"{source}: rope type {kind!r} is not supported; {', '.join(KINDS)} are")
    for key, value in scaling.items():
        if key not in KINDS[kind] | LAYER_TYPES and (key, value) != ("partial_rotary_factor", 1.0):
            raise JobError(f"{source}: rope_parameters.{key}={value!r} is not applied to a rope of type {kind!r}")
    if scaling.get("rope_theta") is None:
        raise JobError(f"{source}: neither rope_theta nor rope_parameters.rope_theta is there; it is needed")
    theta = number(scaling, "rope_theta", source)
    match kind:
        case "default":
            return Rope(theta=theta)
        case "dynamic":  # stretches only sequences of more than max_position_embeddings, which no run has
            number(scaling, "factor", source)
            return Rope(theta=theta)
        case "longrope":
            return read_longrope(values, scaling, theta, source)
        case "linear":
            return Rope(theta=theta, kind=kind, factor=number(scaling, "factor", source))
        case "llama3":
            return Rope(
                theta=theta,
                kind=kind,
                factor=number(scaling, "factor", source),
                original_positions=positive(scaling, "original_max_position_embeddings", source),
                low_freq_factor=number(scaling, "low_freq_factor", source),
                high_freq_factor=number(scaling, "high_freq_factor", source),
            )
        case "yarn":
            return read_yarn(scaling, theta, source)
    raise AssertionError(kind)


def read_longrope(values: Mapping[str, Any], scaling: Mapping[str, Any], theta: float, source: str) -> Rope:
    """Reads LongRoPE (arXiv:2402.13753); its attention factor defaults to sqrt(1 + ln(factor) / ln(original))."""
    original = positive(scaling, "original_max_position_embeddings", source)
    most = positive(values, "max_position_embeddings", source)
    factor = number(scaling, "factor", source, default=most / original)
    growth = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    factors = {}
    for key in ("short_factor", "long_factor"):
        numbers = scaling.get(key)
        if not isinstance(numbers, list) or not numbers or not all(is_number(value) and value > 0 for value in numbers):
            raise JobError(f"{source}: rope_parameters.{key}={numbers!r} is not a list of positive numbers")
        factors[f"{key}s"] = tuple(map(float, numbers))
    return Rope(
        theta=theta,
        kind="longrope",
        factor=factor,
        original_positions=original,
        attention_factor=number(scaling, "attention_factor", source, default=growth),
        **factors,
    )


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def read_yarn(scaling: Mapping[str, Any], theta: float, source: str) -> Rope:
    """Reads YaRN; its attention factor defaults to 0.1 ln(factor) + 1, as a ratio where two `mscale` are given."""
    factor = number(scaling, "factor", source)

    def growth(mscale: float) -> float:
        return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0

    attention_factor = growth(1.0)
    if scaling.get("mscale") and scaling.get("mscale_all_dim"):
        attention_factor = growth(scaling["mscale"]) / growth(scaling["mscale_all_dim"])
    return Rope(
        theta=theta,
        kind="yarn",
        factor=factor,
        original_positions=positive(scaling, "original_max_position_embeddings", source),
        beta_fast=number(scaling, "beta_fast", source, default=32.0),
        beta_slow=number(scaling, "beta_slow", source, default=1.0),
        whole_bounds=bool(scaling.get("truncate", True)),
        attention_factor=number(scaling, "attention_factor", source, default=attention_factor),
    )
