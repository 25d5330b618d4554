"""Sizes and switches of a decoder, read from a Hugging Face `config.json`. No jax, no weights.

Shapes elsewhere are written with these letters: D hidden, N query heads, K key/value heads, H head size, F mlp,
V vocabulary, L layers, R = H/2 rotary pairs.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pod_job.errors import JobError, first_line
from pod_job.formats.json_text import read_json_file
from pod_job.models.config_values import number, optional_number, positive
from pod_job.models.hf_config import FAMILIES, resolve
from pod_job.models.rope import Rope, read_rope

MAX_LAYERS = 10_000
"""More is a mistake: what is described here layer by layer must not fill the memory."""
ACTIVATIONS = ("silu", "gelu_pytorch_tanh")


@dataclass(frozen=True)
class LayerAttention:
    """Window of a layer's queries (None: from the start of their segment) and its rotary embedding."""

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
    """Returns the decoder that a Hugging Face configuration describes; of a model with vision, its text model.

    Args:
        config: the content of a config.json.
        source: names it in errors.
    Raises:
        JobError: a family that is not here, a key that would change the computation and is not applied (see
            `hf_config.resolve`), a value that is missing or of the wrong type, sizes that do not fit.
    """
    check_layers(config, source)
    family, values = resolve(config, source)
    switches = FAMILIES[family]
    hidden, heads = positive(values, "hidden_size", source), positive(values, "num_attention_heads", source)
    head_dim = positive(values, "head_dim", source, default=hidden // heads)
    arch = Arch(
        family=family,
        layers=positive(values, "num_hidden_layers", source),
        hidden=hidden,
        heads=heads,
        kv_heads=positive(values, "num_key_value_heads", source, default=heads),
        head_dim=head_dim,
        mlp=positive(values, "intermediate_size", source),
        vocab=positive(values, "vocab_size", source),
        norm_eps=number(values, "rms_norm_eps", source),
        attention=read_attention(values, source),
        max_positions=positive(values, "max_position_embeddings", source),
        tied=bool(values["tie_word_embeddings"]),
        activation=values.get("hidden_activation") or values.get("hidden_act") or "silu",
        embed_scale=math.sqrt(hidden) if switches.embed_scale else 1.0,
        query_scale=number(values, "query_pre_attn_scalar", source, default=head_dim) ** -0.5,
        attn_softcap=optional_number(values, "attn_logit_softcapping", source),
        logit_softcap=optional_number(values, "final_logit_softcapping", source),
        **biases(family, values),
        qk_norm=switches.qk_norm,
        post_norms=switches.post_norms,
        norm_plus_one=switches.norm_plus_one,
    )
    check_arch(arch, source)
    return arch


def biases(family: str, values: Mapping[str, Any]) -> dict[str, bool]:
    """Returns the fields of `Arch` that say which projections have a bias."""
    attention = bool(values.get("attention_bias"))
    return {"qkv_bias": family == "qwen2" or attention, "out_bias": attention, "mlp_bias": bool(values.get("mlp_bias"))}


def check_layers(config: Mapping[str, Any], source: str) -> None:
    """Raises JobError for more layers than can be meant, before a list of that length is made."""
    for part in (config, config.get("text_config")):
        layers = part.get("num_hidden_layers") if isinstance(part, Mapping) else None
        if isinstance(layers, int) and layers > MAX_LAYERS:
            raise JobError(f"{source}: num_hidden_layers={layers} is more than a decoder here may have, {MAX_LAYERS}")


def check_arch(arch: Arch, source: str) -> None:
    """Raises JobError for sizes and an activation that the decoder cannot compute with."""
    if arch.heads % arch.kv_heads:
        raise JobError(
            f"{source}: num_key_value_heads={arch.kv_heads} does not divide num_attention_heads={arch.heads}"
        )
    if arch.head_dim % 2:
        raise JobError(f"{source}: a head size of {arch.head_dim} is odd; rotary embeddings need pairs")
    if arch.activation not in ACTIVATIONS:
        raise JobError(f"{source}: hidden_act={arch.activation!r} is not supported; {' and '.join(ACTIVATIONS)} are")


def read_attention(values: Mapping[str, Any], source: str) -> tuple[LayerAttention, ...]:
    """Returns window and rotary embedding of each layer, from resolved values."""
    layers, window = values["num_hidden_layers"], values.get("sliding_window")
    every_layer = "full_attention" if window is None else "sliding_attention"
    types = values.get("layer_types") or [every_layer] * layers
    if len(types) != layers or not set(types) <= {"full_attention", "sliding_attention"}:
        shown = ", ".join(sorted(map(str, set(types))))
        raise JobError(
            f"{source}: layer_types has {len(types)} entries ({shown}) for {layers} layers; "
            "each layer needs one of full_attention, sliding_attention"
        )
    by_type = {
        kind: LayerAttention(
            positive(values, "sliding_window", source) if kind == "sliding_attention" else None,
            read_rope(values, kind, source),
        )
        for kind in set(types)
    }
    return tuple(by_type[kind] for kind in types)


def read_arch_file(path: Path) -> Arch:
    """Reads a `config.json` as `read_arch` does; raises JobError also where the file is missing or not JSON."""
    try:
        config = read_json_file(path)
    except FileNotFoundError:
        raise JobError(f"model.path: {path} is missing; give a Hugging Face folder or hub name") from None
    except (ValueError, OSError) as error:
        raise JobError(f"model.path: {path} is not JSON that can be read ({first_line(error)})") from error
    if not isinstance(config, dict):
        raise JobError(f"model.path: {path} is not a JSON object")
    try:
        return read_arch(config, str(path))
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise JobError(f"{path}: a value in it is of the wrong kind ({error}); copy the model again") from error
