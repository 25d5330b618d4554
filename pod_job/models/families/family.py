"""A model family as a table: its keys of `config.json`, its differences from Llama, and its tensors' names."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


def keys(text: str) -> frozenset[str]:
    """Returns the words of a text."""
    return frozenset(text.split())


COMMON_KEYS = keys(
    "model_type hidden_size intermediate_size max_position_embeddings num_attention_heads num_hidden_layers "
    "num_key_value_heads head_dim rms_norm_eps rope_parameters rope_scaling rope_theta tie_word_embeddings vocab_size"
)
"""Keys that are applied in every family but those that name them in `without` or `renamed`."""

LLAMA_MODULES: Mapping[str, str] = {
    "embed": "model.embed_tokens",
    "attn_norm": "model.layers.{}.input_layernorm",
    "q": "model.layers.{}.self_attn.q_proj",
    "k": "model.layers.{}.self_attn.k_proj",
    "v": "model.layers.{}.self_attn.v_proj",
    "o": "model.layers.{}.self_attn.o_proj",
    "q_norm": "model.layers.{}.self_attn.q_norm",
    "k_norm": "model.layers.{}.self_attn.k_norm",
    "mlp_norm": "model.layers.{}.post_attention_layernorm",
    "gate": "model.layers.{}.mlp.gate_proj",
    "up": "model.layers.{}.mlp.up_proj",
    "down": "model.layers.{}.mlp.down_proj",
    "final_norm": "model.norm",
    "unembed": "lm_head",
}
"""Modules of Hugging Face's Llama by the names of our weights."""

POST_NORM_MODULES = {
    # With norms after attention and mlp, post_attention_layernorm is what its name says; elsewhere it is the mlp's.
    "attn_post_norm": "model.layers.{}.post_attention_layernorm",
    "mlp_post_norm": "model.layers.{}.post_feedforward_layernorm",
}


@dataclass(frozen=True, kw_only=True)
class Family:
    """A `model_type` of `config.json`.

    Attributes:
        architecture: the class in transformers that its checkpoints name; None where it is only a part of models with
            vision.
        applied: keys that are applied beside COMMON_KEYS.
        inert: keys that its model in transformers has, and no vector depends on.
        inert_rope: settings of its rotary embedding that no vector depends on.
        computed: keys of which only these values are computed here.
        without: keys of COMMON_KEYS that its model does not read.
        renamed: its own names of Llama's keys.
        switches: fields of `Arch` that are the same in all of its models, and not the default.
        modules: names of modules beside LLAMA_MODULES, or instead of them. Weights with one name are one tensor in the
            checkpoint, fused in this order.
        prefix: of the names in its checkpoints; names here begin with `model.` in every family.
        in_by_out: matrices lie [in, out] in the checkpoint, and not [out, in].
        fused_by_head: fused weights that go head by head.
        mlp_of_hidden: size of the mlp in hidden sizes, where the configuration need not name it.
        embedding_times_sqrt_hidden: embeddings are multiplied by the square root of the hidden size.
        rope_of_layer_type: layers of each type have a rotary embedding of their own.
        partial_rotary: only a part of each head is rotated where the configuration says so.
        null_head_dim: `head_dim: null` means the hidden size divided by the heads; elsewhere its model fails on it.
        bare: weights whose tensor has the name of a module, without `.weight`.
        dequantized: kinds of quantized weights (`quant_method`) that are read, as numbers of more bits.
        layer_types: types of layers that its models may have.
        experts_fused: all experts of a layer are one tensor, [expert, in, out], with outputs of gate and up in turns.
    """

    architecture: str | None
    applied: frozenset[str] = frozenset()
    inert: frozenset[str] = frozenset()
    inert_rope: frozenset[str] = frozenset()
    computed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    without: frozenset[str] = frozenset()
    renamed: Mapping[str, str] = field(default_factory=dict)
    switches: Mapping[str, Any] = field(default_factory=dict)
    modules: Mapping[str, str] = field(default_factory=dict)
    prefix: str = "model."
    in_by_out: bool = False
    fused_by_head: frozenset[str] = frozenset()
    mlp_of_hidden: int | None = None
    embedding_times_sqrt_hidden: bool = False
    rope_of_layer_type: bool = False
    partial_rotary: bool = False
    null_head_dim: bool = False
    bare: frozenset[str] = frozenset()
    dequantized: frozenset[str] = frozenset()
    experts_fused: bool = False
    layer_types: frozenset[str] = keys("full_attention sliding_attention")

    @property
    def all_applied(self) -> frozenset[str]:
        """Every key of a configuration that is applied, under the names that the family gives them."""
        common = COMMON_KEYS - self.without - frozenset(self.renamed)
        return common | self.applied | frozenset(self.renamed.values())

    def own_name(self, key: str) -> str:
        """Returns the family's name of one of Llama's keys."""
        return self.renamed.get(key, key)

    def module(self, weight: str) -> str:
        """Returns the name of the module that holds one of our weights."""
        return self.modules.get(weight) or LLAMA_MODULES[weight]

    def tensor(self, weight: str, bias: bool = False) -> str:
        """Returns the name of the tensor that holds one of our weights, or the bias that goes with it."""
        if weight in self.bare:
            return self.module(weight) + ("_bias" if bias else "")
        return self.module(weight) + (".bias" if bias else ".weight")
