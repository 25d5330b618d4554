"""Every weight of a decoder, stated once: shape, logical axes, and its name in a Hugging Face checkpoint. No jax.

Shapes: D hidden, N query heads, K key/value heads, H head size, F mlp, V vocabulary, L layers. A weight with a
`layer` axis is stacked over all layers; its checkpoint name has one `{}` for the layer.
"""

import math
from dataclasses import dataclass

from pod_job.models.arch import Arch


@dataclass(frozen=True)
class Weight:
    """Our array of `shape`, whose dimensions carry the logical `axes` (None: never split).

    `linear`: the checkpoint holds a torch Linear, [out, in]; ours is its transpose, split into heads.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    checkpoint_name: str
    linear: bool = False

    @property
    def stacked(self) -> bool:
        return self.axes[0] == "layer"

    @property
    def checkpoint_shape(self) -> tuple[int, ...]:
        """Shape of the tensor in the checkpoint, of one layer where the weight is stacked."""
        shape = self.shape[1:] if self.stacked else self.shape
        axes = self.axes[1:] if self.stacked else self.axes
        if not self.linear:
            return (math.prod(shape),) if "head" in axes else shape
        inputs = shape[:-1] if axes[-1] == "embed" else shape[:1]
        return (math.prod(shape[len(inputs) :]), math.prod(inputs))


def weight_table(arch: Arch, head: bool = True) -> dict[str, Weight]:
    """Returns name -> weight for the parameters of `Decoder`; without `head`, not the output matrix of logits."""
    D, N, K, H, F, V, L = arch.hidden, arch.heads, arch.kv_heads, arch.head_dim, arch.mlp, arch.vocab, arch.layers
    attn, mlp = "model.layers.{}.self_attn.", "model.layers.{}.mlp."
    q_axes, kv_axes = ("layer", "embed", "heads", "head"), ("layer", "embed", "kv_heads", "head")
    table = {
        "embed": Weight((V, D), ("vocab", "embed"), "model.embed_tokens.weight"),
        "attn_norm": Weight((L, D), ("layer", "embed"), "model.layers.{}.input_layernorm.weight"),
        "q": Weight((L, D, N, H), q_axes, attn + "q_proj.weight", linear=True),
        "k": Weight((L, D, K, H), kv_axes, attn + "k_proj.weight", linear=True),
        "v": Weight((L, D, K, H), kv_axes, attn + "v_proj.weight", linear=True),
        "o": Weight((L, N, H, D), ("layer", "heads", "head", "embed"), attn + "o_proj.weight", linear=True),
        "mlp_norm": Weight((L, D), ("layer", "embed"), "model.layers.{}.post_attention_layernorm.weight"),
        "gate": Weight((L, D, F), ("layer", "embed", "mlp"), mlp + "gate_proj.weight", linear=True),
        "up": Weight((L, D, F), ("layer", "embed", "mlp"), mlp + "up_proj.weight", linear=True),
        "down": Weight((L, F, D), ("layer", "mlp", "embed"), mlp + "down_proj.weight", linear=True),
        "final_norm": Weight((D,), ("embed",), "model.norm.weight"),
    }
    if arch.qk_norm:
        table["q_norm"] = Weight((L, H), ("layer", "head"), attn + "q_norm.weight")
        table["k_norm"] = Weight((L, H), ("layer", "head"), attn + "k_norm.weight")
    if arch.post_norms:
        # Here the checkpoint's post_attention_layernorm is what its name says; elsewhere it is the mlp's.
        layer = "model.layers.{}."
        table["attn_post_norm"] = Weight((L, D), ("layer", "embed"), layer + "post_attention_layernorm.weight")
        table["mlp_norm"] = Weight((L, D), ("layer", "embed"), layer + "pre_feedforward_layernorm.weight")
        table["mlp_post_norm"] = Weight((L, D), ("layer", "embed"), layer + "post_feedforward_layernorm.weight")
    if arch.qkv_bias:
        table["q_bias"] = Weight((L, N, H), ("layer", "heads", "head"), attn + "q_proj.bias")
        table["k_bias"] = Weight((L, K, H), ("layer", "kv_heads", "head"), attn + "k_proj.bias")
        table["v_bias"] = Weight((L, K, H), ("layer", "kv_heads", "head"), attn + "v_proj.bias")
    if arch.out_bias:
        table["o_bias"] = Weight((L, D), ("layer", "embed"), attn + "o_proj.bias")
    if arch.mlp_bias:
        table["gate_bias"] = Weight((L, F), ("layer", "mlp"), mlp + "gate_proj.bias")
        table["up_bias"] = Weight((L, F), ("layer", "mlp"), mlp + "up_proj.bias")
        table["down_bias"] = Weight((L, D), ("layer", "embed"), mlp + "down_proj.bias")
    if head and not arch.tied:
        table["unembed"] = Weight((D, V), ("embed", "vocab"), "lm_head.weight", linear=True)
    return table
