"""Sizes and switches of a decoder, read from a Hugging Face `config.json`. No jax, no weights.

Shapes elsewhere are written with these letters: D hidden, N query heads, K key/value heads, H head size, F mlp,
V vocabulary, L layers, E experts, R = H/2 rotary pairs.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pod_job.errors import JobError, first_line
from pod_job.formats.json_text import read_json_file
from pod_job.models.config_values import number, optional_number, positive
from pod_job.models.families import FAMILIES
from pod_job.models.families.family import Family
from pod_job.models.hf_config import resolve
from pod_job.models.rope import Rope, read_rope

MAX_LAYERS = 10_000
"""More is a mistake: what is described here layer by layer must not fill the memory."""
LINEAR = "linear_attention"
"""Layer type of a gated delta rule."""
ACTIVATIONS = (
    *("silu", "swish", "gelu", "gelu_python", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_python_tanh"),
    *("quick_gelu", "relu", "relu2"),
)
"""Names in `config.json` of activations that are computed here."""


@dataclass(frozen=True)
class LayerAttention:
    """Window of a layer's queries (None: from the start of their segment) and its rotary embedding (None: none).

    `delta`: a gated delta rule takes the place of attention in this layer.
    """

    window: int | None
    rope: Rope | None
    delta: bool = False


@dataclass(frozen=True)
class DeltaNet:
    """Sizes of the layers with a gated delta rule, of which each key head serves value_heads / key_heads value heads.

    `kernel`: how many positions the convolution of queries, keys and values sees.
    """

    key_heads: int
    value_heads: int
    key_size: int
    value_size: int
    kernel: int


@dataclass(frozen=True, kw_only=True)
class Arch:
    """A decoder's sizes (D hidden, N heads, K kv_heads, H head_dim, F mlp, V vocab, L layers) and its switches.

    Switches with a default are Llama's unless a family says otherwise (`models/families`).
    """

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
    rotated: int | None = None  # first dimensions of a head that are rotated, the others stay; None: all
    qk_norm: bool = False  # RMSNorm of queries and keys before the rotation
    qk_norm_of_heads: bool = True  # of each head by itself; else of all heads together
    pre_norms: bool = True  # norm of what attention and mlp read
    post_norms: bool = False  # norm of what attention and mlp add to the residual stream
    norm_plus_one: bool = False  # norms multiply by 1 + weight
    norm_in_float32: bool = False  # norms multiply by their weight before they round to the model's dtype
    layer_norm: bool = False  # norms subtract the mean, and have a bias
    gated: bool = True  # the mlp multiplies its activation by a second projection
    parallel: bool = False  # the mlp reads what attention reads
    learned_positions: bool = False  # a table of them is added to the embedding
    residual_scale: float = 1.0  # multiplies what attention and mlp add to the residual stream
    logit_scale: float = 1.0
    experts: int = 0  # mlps of a layer, of which a router chooses for each token; 0: one mlp for all
    experts_per_token: int = 0
    shares_of_chosen: bool = True  # shares of the chosen experts add up to 1; else those of all experts do
    router_bias: bool = False
    glu_limit: float | None = None  # a gated mlp's clamped SwiGLU: gate <= limit, |up| <= limit; None: `activation`
    glu_alpha: float = 1.0  # and the factor in its sigmoid
    sinks: bool = False  # each head has a score more in its softmax, without a value
    attn_gate: bool = False  # the heads' outputs are multiplied by the sigmoid of a projection of their own
    delta: DeltaNet | None = None  # of the layers with a gated delta rule
    shared_mlp: int = 0  # size of the expert that is added for every token, with a share of its own; 0: none

    @property
    def delta_layers(self) -> int:
        """Number of layers with a gated delta rule; the others have attention."""
        return sum(layer.delta for layer in self.attention)

    @property
    def one_rope(self) -> int:
        """Length up to which a sequence is rotated the same way however long it gets: longrope changes past it."""
        ropes = [layer.rope for layer in self.attention if layer.rope is not None and layer.rope.kind == "longrope"]
        return min([self.max_positions, *(rope.original_positions for rope in ropes)])


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
    name, values = resolve(config, source)
    family = FAMILIES[name]
    share, values = rotated_share(values, family)
    hidden, heads = positive(values, "hidden_size", source), positive(values, "num_attention_heads", source)
    head_dim = positive(values, "head_dim", source, default=hidden // heads)
    switches = {**biases(values), **scales(values, family, hidden, head_dim, source), **experts(values, source)}
    switches |= delta_net(values, source)
    arch = Arch(
        family=name,
        layers=positive(values, "num_hidden_layers", source),
        hidden=hidden,
        heads=heads,
        kv_heads=positive(values, "num_key_value_heads", source, default=heads),
        head_dim=head_dim,
        mlp=positive(values, "intermediate_size", source, default=(family.mlp_of_hidden or 0) * hidden or None),
        vocab=positive(values, "vocab_size", source),
        norm_eps=number(values, "rms_norm_eps", source),
        attention=read_attention(values, family, source),
        max_positions=positive(values, "max_position_embeddings", source),
        tied=bool(values["tie_word_embeddings"]),
        activation=values.get("hidden_activation") or values.get("hidden_act") or "silu",
        attn_softcap=optional_number(values, "attn_logit_softcapping", source),
        logit_softcap=optional_number(values, "final_logit_softcapping", source),
        rotated=None if share == 1 else int(head_dim * share),
        parallel=bool(values.get("use_parallel_residual")),
        **{**switches, **family.switches},
    )
    check_arch(arch, source)
    return arch


def rotated_share(values: Mapping[str, Any], family: Family) -> tuple[float, Mapping[str, Any]]:
    """Returns the share of a head's dimensions that is rotated, and the values without it and what has no effect."""
    parameters = values.get("rope_parameters")
    if not isinstance(parameters, Mapping):
        return 1.0, values
    left_out = family.inert_rope | ({"partial_rotary_factor"} if family.partial_rotary else set())
    share = parameters.get("partial_rotary_factor") if family.partial_rotary else None
    rest = {key: value for key, value in parameters.items() if key not in left_out}
    return 1.0 if share is None else share, {**values, "rope_parameters": rest}


def biases(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the fields of `Arch` that say which projections have a bias."""
    attention = bool(values.get("attention_bias"))
    return {"qkv_bias": attention, "out_bias": attention, "mlp_bias": bool(values.get("mlp_bias"))}


def scales(values: Mapping[str, Any], family: Family, hidden: int, head_dim: int, source: str) -> Mapping[str, float]:
    """Returns the fields of `Arch` that multiply embeddings, scores, what layers add, and logits."""
    of_embedding = math.sqrt(hidden) if family.embedding_times_sqrt_hidden else 1.0
    of_query = number(values, "query_pre_attn_scalar", source, default=head_dim) ** -0.5
    return {
        "embed_scale": number(values, "embedding_multiplier", source, default=of_embedding),
        "query_scale": number(values, "attention_multiplier", source, default=of_query),
        "residual_scale": number(values, "residual_multiplier", source, default=1.0),
        "logit_scale": 1 / number(values, "logits_scaling", source, default=1.0),
    }


def experts(values: Mapping[str, Any], source: str) -> Mapping[str, Any]:
    """Returns the fields of `Arch` about experts; none where the family has one mlp a layer."""
    if "num_experts" not in values:
        return {}
    count, chosen = positive(values, "num_experts", source), positive(values, "num_experts_per_tok", source)
    if chosen > count:
        raise JobError(f"{source}: num_experts_per_tok={chosen} is more than the model has, {count}")
    fields = {"experts": count, "experts_per_token": chosen}
    if "shared_expert_intermediate_size" in values:
        fields |= {"shared_mlp": positive(values, "shared_expert_intermediate_size", source)}
    if "swiglu_limit" in values:
        alpha = number(values, "swiglu_alpha", source, default=1.702)
        return {**fields, "glu_limit": number(values, "swiglu_limit", source, default=7.0), "glu_alpha": alpha}
    return {**fields, "shares_of_chosen": bool(values.get("norm_topk_prob", True))}


def delta_net(values: Mapping[str, Any], source: str) -> Mapping[str, DeltaNet]:
    """Returns the field of `Arch` about gated delta rules; none where no layer of the family has one."""
    if "linear_num_key_heads" not in values:
        return {}
    keys = (
        "linear_num_key_heads linear_num_value_heads linear_key_head_dim linear_value_head_dim linear_conv_kernel_dim"
    )
    sizes = DeltaNet(*(positive(values, key, source) for key in keys.split()))
    if sizes.value_heads % sizes.key_heads:
        raise JobError(
            f"{source}: linear_num_key_heads={sizes.key_heads} does not divide "
            f"linear_num_value_heads={sizes.value_heads}"
        )
    return {"delta": sizes}


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
    if arch.rotated is not None and (arch.rotated % 2 or not 0 < arch.rotated <= arch.head_dim):
        raise JobError(
            f"{source}: {arch.rotated} of a head's {arch.head_dim} dimensions are to be rotated; rotary "
            "embeddings need pairs, and no more than a head has"
        )
    rotated = arch.head_dim if arch.rotated is None else arch.rotated
    for rope in {layer.rope for layer in arch.attention if layer.rope is not None and layer.rope.kind == "longrope"}:
        if {len(rope.short_factors), len(rope.long_factors)} != {rotated // 2}:
            raise JobError(
                f"{source}: rope_parameters.short_factor and long_factor have {len(rope.short_factors)} and "
                f"{len(rope.long_factors)} numbers; each needs {rotated // 2}, one for each rotated pair of a head"
            )
    if arch.activation not in ACTIVATIONS:
        raise JobError(f"{source}: hidden_act={arch.activation!r} is not supported; {', '.join(ACTIVATIONS)} are")


def read_attention(values: Mapping[str, Any], family: Family, source: str) -> tuple[LayerAttention, ...]:
    """Returns the kind of attention, window and rotary embedding of each layer, from resolved values."""
    layers, window = values["num_hidden_layers"], values.get("sliding_window")
    every_layer = "full_attention" if window is None else "sliding_attention"
    types = values.get("layer_types") or [every_layer] * layers
    if len(types) != layers or not set(types) <= family.layer_types:
        shown = ", ".join(sorted(map(str, set(types))))
        raise JobError(
            f"{source}: layer_types has {len(types)} entries ({shown}) for {layers} layers; "
            f"each layer needs one of {', '.join(sorted(family.layer_types))}"
        )
    windows = {
        kind: positive(values, "sliding_window", source) if kind == "sliding_attention" else None for kind in types
    }
    turned = set(types) - {LINEAR} if "rope_parameters" in values else set()
    ropes = {kind: read_rope(values, kind, source) if kind in turned else None for kind in types}
    rotated = values.get("no_rope_layers") or [1] * layers  # 1: the layer rotates, despite the name
    if len(rotated) < layers:
        raise JobError(f"{source}: no_rope_layers has {len(rotated)} entries for {layers} layers; each needs one")
    return tuple(
        LayerAttention(windows[kind], ropes[kind] if turns else None, kind == LINEAR)
        for kind, turns in zip(types, rotated, strict=False)
    )


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
