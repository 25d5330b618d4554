"""Sizes and switches of a decoder, read from a Hugging Face `config.json`. No jax, no weights.

Shapes elsewhere are written with these letters: D hidden, N query heads, K key/value heads, H head size, F mlp,
V vocabulary, L layers, R = H/2 rotary pairs.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from pod_job.errors import JobError

FAMILIES = ("llama", "qwen2")


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary embedding: base frequency and, for `llama3`, how low frequencies are stretched."""

    theta: float
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_positions: int = 8192

    def frequencies(self, head_dim: int) -> Float[np.ndarray, "R"]:
        """Radians per position for each pair of a head's dimensions, float32.

        `llama3` is the piecewise scaling of Llama 3.1 (transformers, `_compute_llama3_parameters`): wavelengths
        longer than `original_positions / low_freq_factor` are divided by `factor`, short ones kept, between blended.
        """
        exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
        base = (1.0 / np.float32(self.theta) ** exponents).astype(np.float32)
        if self.kind == "default":
            return base
        if self.kind == "linear":
            return (base / self.factor).astype(np.float32)
        wavelength = 2 * math.pi / base
        blend = (self.original_positions / wavelength - self.low_freq_factor) / (
            self.high_freq_factor - self.low_freq_factor
        )
        blend = np.clip(blend, 0.0, 1.0)
        return ((1 - blend) * base / self.factor + blend * base).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Arch:
    """A decoder's sizes (D hidden, N heads, K kv_heads, H head_dim, F mlp, V vocab, L layers) and its switches."""

    family: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocab: int
    norm_eps: float
    rope: Rope
    max_positions: int
    tied: bool  # the embedding serves as the output matrix
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False


def read_arch(config: Mapping[str, Any], source: str = "config") -> Arch:
    """The decoder described by a Hugging Face configuration; `source` names it in errors.

    Raises:
        JobError: an architecture we do not have, a key that is missing or of the wrong type, sizes that do not fit.
    """
    family = config.get("model_type")
    if family not in FAMILIES:
        raise JobError(f"{source}: model_type={family!r} is not one of the families here: {', '.join(FAMILIES)}")
    heads = positive(config, "num_attention_heads", source)
    hidden = positive(config, "hidden_size", source)
    arch = Arch(
        family=family,
        layers=positive(config, "num_hidden_layers", source),
        hidden=hidden,
        heads=heads,
        kv_heads=positive(config, "num_key_value_heads", source, default=heads),
        head_dim=positive(config, "head_dim", source, default=hidden // heads),
        mlp=positive(config, "intermediate_size", source),
        vocab=positive(config, "vocab_size", source),
        norm_eps=float(required(config, "rms_norm_eps", source)),
        rope=read_rope(config, source),
        max_positions=positive(config, "max_position_embeddings", source),
        tied=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=family == "qwen2" or bool(config.get("attention_bias", False)),
        out_bias=family != "qwen2" and bool(config.get("attention_bias", False)),
        mlp_bias=bool(config.get("mlp_bias", False)),
    )
    if arch.heads % arch.kv_heads:
        raise JobError(f"{source}: num_key_value_heads={arch.kv_heads} does not divide num_attention_heads={heads}")
    if config.get("hidden_act", "silu") != "silu":
        raise JobError(f"{source}: hidden_act={config['hidden_act']!r} is not supported for {family}; only silu is")
    if config.get("use_sliding_window"):
        raise JobError(f"{source}: use_sliding_window=true is not supported; only full attention is")
    return arch


def read_rope(config: Mapping[str, Any], source: str) -> Rope:
    """Reads the newer `rope_parameters` or the older `rope_theta` with `rope_scaling`."""
    scaling = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    theta = scaling.get("rope_theta", config.get("rope_theta"))
    if theta is None:
        raise JobError(f"{source}: neither rope_theta nor rope_parameters.rope_theta is there; it is needed")
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return Rope(theta=float(theta))
    if kind == "linear":
        return Rope(theta=float(theta), kind=kind, factor=float(required(scaling, "factor", source)))
    if kind == "llama3":
        return Rope(
            theta=float(theta),
            kind=kind,
            factor=float(required(scaling, "factor", source)),
            low_freq_factor=float(required(scaling, "low_freq_factor", source)),
            high_freq_factor=float(required(scaling, "high_freq_factor", source)),
            original_positions=int(required(scaling, "original_max_position_embeddings", source)),
        )
    raise JobError(f"{source}: rope type {kind!r} is not supported; default, linear and llama3 are")


def required(config: Mapping[str, Any], key: str, source: str) -> Any:
    if config.get(key) is None:
        raise JobError(f"{source}: {key} is missing; it is needed to size the model")
    return config[key]


def positive(config: Mapping[str, Any], key: str, source: str, default: int | None = None) -> int:
    value = config.get(key) if default is not None else required(config, key, source)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise JobError(f"{source}: {key}={value!r} is not a positive whole number")
    return value


def read_arch_file(path: Path) -> Arch:
    """`read_arch` of a `config.json`; raises JobError also where the file is missing or not JSON."""
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise JobError(f"model.path: {path} is missing; give a Hugging Face folder or hub name") from None
    except ValueError as error:
        raise JobError(f"model.path: {path} is not JSON ({error})") from error
    if not isinstance(config, dict):
        raise JobError(f"model.path: {path} is not a JSON object")
    return read_arch(config, str(path))
