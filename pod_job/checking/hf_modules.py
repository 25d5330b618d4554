"""Places of the taps in Hugging Face's torch models: module, input or output, and which part of it. Needs torch.

Written from transformers' `modeling_*.py`, independently of the tables in `models/families` that it is held against.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

Take = Callable[[torch.Tensor], torch.Tensor]


class Point(Enum):
    """Place of a tap at its module."""

    input = "input"
    output = "output"


class TapPoint(NamedTuple):
    """A tap's name, and where its value is: `take` of a module's input or output; of several, of the one at `which`."""

    module: torch.nn.Module
    point: Point
    name: str
    take: Take
    which: int = 0


@dataclass(frozen=True)
class Names:
    """Attributes of a model's decoder, and of its layers, by what they are; `qkv`: of fused projections."""

    layers: str = "layers"
    final_norm: str = "norm"
    attention: str = "self_attn"
    qkv: str | None = None
    o: str = "o_proj"
    mlp_norm: str = "post_attention_layernorm"
    down: str = "down_proj"


NAMES = {
    "gpt2": Names("h", "ln_f", "attn", "c_attn", "c_proj", "ln_2", "c_proj"),
    "gpt_neox": Names(
        final_norm="final_layer_norm", attention="attention", qkv="query_key_value", o="dense", down="dense_4h_to_h"
    ),
    "phi3": Names(qkv="qkv_proj"),
}
"""Families whose modules have other names than Llama's."""


GATED_ATTENTION = ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text")
"""Families whose projection of queries gives each head a gate too."""


def text_decoder(model: PreTrainedModel) -> Any:
    """Returns the stack of layers of a causal model, of one with vision that of its text model."""
    decoder: Any = model.base_model
    return getattr(decoder, "language_model", decoder)


def keep_layers(model: PreTrainedModel, count: int) -> None:
    """Removes the layers past the first `count`."""
    decoder = text_decoder(model)
    attribute = names_of(decoder).layers
    setattr(decoder, attribute, getattr(decoder, attribute)[:count])


def decoder_layers(model: PreTrainedModel) -> list[torch.nn.Module]:
    decoder = text_decoder(model)
    return list(getattr(decoder, names_of(decoder).layers))


def names_of(decoder: Any) -> Names:
    return NAMES.get(decoder.config.model_type, Names())


def tap_points(model: PreTrainedModel) -> Iterator[TapPoint]:
    """Yields where the value of every tap is."""
    decoder = text_decoder(model)
    names = names_of(decoder)
    layers = getattr(decoder, names.layers)
    yield TapPoint(layers[0], Point.input, "embed", whole)
    for i, layer in enumerate(layers):
        for place in layer_points(decoder.config, names, layer):
            yield place._replace(name=f"layer_{i}{place.name and '.'}{place.name}")
    yield TapPoint(getattr(decoder, names.final_norm), Point.output, f"layer_{len(layers)}_norm", whole)


def layer_points(config: Any, names: Names, layer: Any) -> Iterator[TapPoint]:
    """Yields the sites of a layer; "" is its output."""
    attention = getattr(layer, names.attention, None) or layer.linear_attn
    mlp, post_norms = layer.mlp, hasattr(layer, "post_feedforward_layernorm")
    o = attention.out_proj if hasattr(attention, "out_proj") else getattr(attention, names.o)
    router = getattr(mlp, "router", getattr(mlp, "gate", None))
    down = mlp if router is not None else getattr(mlp, names.down)
    multiplier = getattr(config, "residual_multiplier", 1.0)

    def multiplied(x: torch.Tensor) -> torch.Tensor:
        return x * multiplier

    yield TapPoint(layer, Point.input, "resid_pre", whole)
    yield TapPoint(layer, Point.output, "", whole)
    yield TapPoint(attention, Point.input, "attn_in", whole)
    for name, module, take in projections(config, names, attention):
        yield TapPoint(module, Point.output, name, take)
    yield TapPoint(o, Point.input, "z", whole)
    yield TapPoint(mlp, Point.input, "mlp_in", whole)
    if router is None:
        yield TapPoint(down, Point.input, "mlp_act", whole)
    else:
        yield TapPoint(router, Point.output, "router_logits", whole)
        yield TapPoint(router, Point.output, "expert_ids", whole, 2)
    if not getattr(config, "use_parallel_residual", False):
        pre_norm = getattr(layer, "pre_feedforward_layernorm", mlp if post_norms else getattr(layer, names.mlp_norm))
        yield TapPoint(pre_norm, Point.input, "resid_mid", whole)
    if post_norms:
        yield TapPoint(o, Point.output, "attn_out_pre_norm", whole)
        yield TapPoint(down, Point.output, "mlp_out_pre_norm", whole)
    yield TapPoint(layer.post_attention_layernorm if post_norms else o, Point.output, "attn_out", multiplied)
    yield TapPoint(layer.post_feedforward_layernorm if post_norms else down, Point.output, "mlp_out", multiplied)


def projections(config: Any, names: Names, attention: Any) -> Iterator[tuple[str, torch.nn.Module, Take]]:
    """Yields the module whose output holds queries, keys or values, and how they are taken from it."""
    if hasattr(attention, "in_proj_qkv"):
        keys, values = attention.key_dim, attention.value_dim
        for which, name in enumerate("qkv"):
            yield name, attention.in_proj_qkv, part([keys, keys, values], which)
        return
    if hasattr(attention, "in_proj_qkvz"):  # key head by key head, with its value heads
        heads, keys, values = (getattr(attention, name) for name in ("num_k_heads", "key_dim", "value_dim"))
        sizes = [size // heads for size in (keys, keys, values, values)]
        for which, name in enumerate("qkv"):
            yield name, attention.in_proj_qkvz, part(sizes, which, heads)
        return
    if names.qkv is None:
        gated = config.model_type in GATED_ATTENTION  # a head's queries, and then its gate
        heads, size = config.num_attention_heads, getattr(attention, "head_dim", 0)
        yield "q", attention.q_proj, part([size, size], 0, heads) if gated else whole
        for name in "kv":
            yield name, getattr(attention, f"{name}_proj"), whole
        return
    module, heads = getattr(attention, names.qkv), config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    keys = getattr(config, "num_key_value_heads", heads)
    sizes = [heads * head_size, keys * head_size, keys * head_size]

    for which, name in enumerate("qkv"):
        head_by_head = config.model_type == "gpt_neox"
        yield name, module, part([head_size] * 3, which, heads) if head_by_head else part(sizes, which)


def part(sizes: Sequence[int], which: int, heads: int = 1) -> Take:
    """Returns what takes one of the parts of these sizes, which every one of the heads has."""
    return lambda x: x.unflatten(-1, (heads, -1)).split(list(sizes), -1)[which].flatten(-2)


def whole(x: torch.Tensor) -> torch.Tensor:
    return x
