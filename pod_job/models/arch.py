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

from pod_job.errors import JobError
from pod_job.models.hf_config import number, optional_number, positive
from pod_job.models.rope import Rope, read_rope

# What a family's layers have beyond Llama's.
SWITCHES: dict[str, dict[str, bool]] = {
    "llama": {},
    "mistral": {},
    "qwen2": {},
    "qwen3": {"qk_norm": True},
    "gemma2": {"post_norms": True, "norm_plus_one": True},
    "gemma3_text": {"post_norms": True, "norm_plus_one": True, "qk_norm": True},
}

# What config.json may leave out, because transformers' configuration classes fill it in. Files of Gemma do.
GEMMA_DEFAULTS: dict[str, Any] = {
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"rope_theta": 10_000.0},
    "mistral": {"rope_theta": 10_000.0, "sliding_window": 4096},
    "qwen3": {"head_dim": 128},
    "gemma2": GEMMA_DEFAULTS
    | {
        "vocab_size": 256_000,
        "max_position_embeddings": 8192,
        "rope_theta": 10_000.0,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    "gemma3_text": GEMMA_DEFAULTS
    | {
        "vocab_size": 262_208,
        "max_position_embeddings": 131_072,
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
        "sliding_window_pattern": 6,
    },
}

MAX_LAYERS = 10_000
"""Of a config that can be meant: what is described here layer by layer must not fill the memory."""
ACTIVATIONS = ("silu", "gelu_pytorch_tanh")


@dataclass(frozen=True)
class LayerAttention:
    """How far back a layer's queries look, and its rotary embedding; `window` None: to the start of the segment."""

    window: int | None
    rope: Rope


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
    attention: tuple[LayerAttention, ...]  # one per layer
    max_positions: int
    tied: bool  # the embedding serves as the output matrix
    activation: str  # one of ACTIVATIONS
    embed_scale: float  # multiplies embeddings
    query_scale: float  # multiplies dot products of queries and keys
    attn_softcap: float | None  # c: a score x becomes c tanh(x / c); None: stays
    logit_softcap: float | None
    qkv_bias: bool
    out_bias: bool
    mlp_bias: bool
    qk_norm: bool = False  # RMSNorm of each head's query and key before the rotation
    post_norms: bool = False  # RMSNorm also of what attention and mlp add to the residual stream
    norm_plus_one: bool = False  # norms multiply by 1 + weight


def read_arch(config: Mapping[str, Any], source: str = "config") -> Arch:
    """The decoder described by a Hugging Face configuration; `source` names it in errors.

    Of Gemma 3 with vision, the text model.

    Raises:
        JobError: an architecture we do not have, a key that is missing or of the wrong type, sizes that do not fit.
    """
    if config.get("model_type") == "gemma3" and isinstance(config.get("text_config"), Mapping):
        tied = config.get("tie_word_embeddings", True)
        config = {**config["text_config"], "model_type": "gemma3_text", "tie_word_embeddings": tied}
    family = config.get("model_type")
    if family not in SWITCHES:
        raise JobError(f"{source}: model_type={family!r} is not one of the families here: {', '.join(SWITCHES)}")
    config = DEFAULTS.get(family, {}) | dict(config)
    hidden, heads = positive(config, "hidden_size", source), positive(config, "num_attention_heads", source)
    layers = positive(config, "num_hidden_layers", source)
    if layers > MAX_LAYERS:
        raise JobError(f"{source}: num_hidden_layers={layers} is more than a decoder here may have, {MAX_LAYERS}")
    head_dim = positive(config, "head_dim", source, default=hidden // heads)
    attention_bias = family != "qwen2" and bool(config.get("attention_bias", False))
    arch = Arch(
        family=family,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=positive(config, "num_key_value_heads", source, default=heads),
        head_dim=head_dim,
        mlp=positive(config, "intermediate_size", source),
        vocab=positive(config, "vocab_size", source),
        norm_eps=number(config, "rms_norm_eps", source),
        attention=read_attention(config, family, layers, source),
        max_positions=positive(config, "max_position_embeddings", source),
        tied=bool(config.get("tie_word_embeddings", False)),
        activation=config.get("hidden_activation") or config.get("hidden_act") or "silu",
        embed_scale=math.sqrt(hidden) if family.startswith("gemma") else 1.0,
        query_scale=number(config, "query_pre_attn_scalar", source, default=head_dim) ** -0.5,
        # Gemma 3's configurations have the key too, and transformers does not look at it.
        attn_softcap=optional_number(config, "attn_logit_softcapping", source) if family == "gemma2" else None,
        logit_softcap=optional_number(config, "final_logit_softcapping", source),
        qkv_bias=family == "qwen2" or attention_bias,
        out_bias=attention_bias,
        mlp_bias=bool(config.get("mlp_bias", False)),
        **SWITCHES[family],
    )
    check(arch, config, source)
    return arch


def check(arch: Arch, config: Mapping[str, Any], source: str) -> None:
    if arch.heads % arch.kv_heads:
        raise JobError(
            f"{source}: num_key_value_heads={arch.kv_heads} does not divide num_attention_heads={arch.heads}"
        )
    if arch.head_dim % 2:
        raise JobError(f"{source}: a head size of {arch.head_dim} is odd; rotary embeddings need pairs")
    if arch.activation not in ACTIVATIONS:
        raise JobError(f"{source}: hidden_act={arch.activation!r} is not supported; {' and '.join(ACTIVATIONS)} are")
    if config.get("use_bidirectional_attention"):
        raise JobError(f"{source}: use_bidirectional_attention=true is not supported; only causal attention is")


def read_attention(config: Mapping[str, Any], family: str, layers: int, source: str) -> tuple[LayerAttention, ...]:
    """Window and rotary embedding of each layer."""
    kinds = {
        "full_attention": lambda: LayerAttention(None, read_rope(config, "full_attention", source)),
        "sliding_attention": lambda: LayerAttention(
            positive(config, "sliding_window", source), read_rope(config, "sliding_attention", source)
        ),
    }
    types = layer_types(config, family, layers, source)
    if len(types) != layers or not set(types) <= kinds.keys():
        shown = ", ".join(sorted(map(str, set(types))))
        raise JobError(
            f"{source}: layer_types has {len(types)} entries ({shown}) for {layers} layers; "
            f"each layer needs one of {', '.join(kinds)}"
        )
    made = {name: kinds[name]() for name in set(types)}
    return tuple(made[name] for name in types)


def layer_types(config: Mapping[str, Any], family: str, layers: int, source: str) -> list[str]:
    """`full_attention` or `sliding_attention` for each layer, as transformers' model of this family decides it."""
    if family in ("qwen2", "qwen3") and not config.get("use_sliding_window"):
        return ["full_attention"] * layers
    if family == "llama" or config.get("sliding_window") is None:
        return ["full_attention"] * layers
    if family == "mistral":
        return ["sliding_attention"] * layers
    if config.get("layer_types") is not None:
        return list(config["layer_types"])
    if family in ("qwen2", "qwen3"):
        first = config.get("max_window_layers", 28)
        return ["sliding_attention" if i >= first else "full_attention" for i in range(layers)]
    every = positive(config, "sliding_window_pattern", source, default=2)
    return ["sliding_attention" if (i + 1) % every else "full_attention" for i in range(layers)]


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
    try:
        return read_arch(config, str(path))
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise JobError(f"{path}: a value in it is of the wrong kind ({error}); copy the model again") from error
