"""Every weight of a decoder, stated once: shape, logical axes, and its place in a Hugging Face checkpoint. No jax.

Shapes: D hidden, N query heads, K key/value heads, H head size, F mlp, V vocabulary, P positions, L layers. A weight
with a `layer` axis is stacked over all layers; its checkpoint name has one `{}` for the layer.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int

from pod_job.models.arch import Arch
from pod_job.models.families import FAMILIES

Axes = tuple[str | None, ...]
Dims = tuple[tuple[int, ...], Axes]
"""Shape and logical axes of a weight of one layer."""


@dataclass(frozen=True)
class Part:
    """Part of a fused tensor's outputs: of every `every` of them `size`, from `start` on; `whole` in all.

    `rows`: the outputs are the tensor's rows; else its columns, or the places of a vector.
    """

    start: int
    size: int
    every: int
    whole: int
    rows: bool

    @property
    def index(self) -> Int[np.ndarray, " outputs"]:
        """Places of the part's outputs in the fused tensor."""
        return np.arange(self.whole).reshape(-1, self.every)[:, self.start : self.start + self.size].ravel()


@dataclass(frozen=True)
class Weight:
    """Our array of `shape`, whose dimensions carry the logical `axes` (None: never split).

    Attributes:
        linear: the checkpoint holds a torch Linear, [out, in]; ours is its transpose, split into heads.
        in_by_out: the checkpoint holds a matrix as ours, [in, out], but for the split into heads.
        part: of a fused tensor that ours is; None where the tensor is ours alone.
    """

    shape: tuple[int, ...]
    axes: Axes
    checkpoint_name: str
    linear: bool = False
    in_by_out: bool = False
    part: Part | None = None

    @property
    def stacked(self) -> bool:
        return self.axes[0] == "layer"

    @property
    def leading_dims(self) -> int:
        """How many of our dimensions, the layers aside, are a matrix's inputs, or the first of a table's two."""
        axes = self.axes[1:] if self.stacked else self.axes
        if self.linear or self.in_by_out:
            return len(axes) - 1 if axes[-1] == "embed" else 1
        return 1 if len(self.part_shape) == 2 else 0

    @property
    def part_shape(self) -> tuple[int, ...]:
        """Shape of ours in the checkpoint, of one layer where the weight is stacked."""
        shape = self.shape[1:] if self.stacked else self.shape
        if not (self.linear or self.in_by_out):
            return (math.prod(shape),) if "head" in self.axes else shape
        inputs, outputs = math.prod(shape[: self.leading_dims]), math.prod(shape[self.leading_dims :])
        return (outputs, inputs) if self.linear else (inputs, outputs)

    @property
    def checkpoint_shape(self) -> tuple[int, ...]:
        """Shape of the tensor in the checkpoint, of one layer where the weight is stacked."""
        if self.part is None:
            return self.part_shape
        return (self.part.whole, *self.part_shape[1:]) if self.part.rows else (*self.part_shape[:-1], self.part.whole)


def weight_table(arch: Arch, head: bool = True) -> dict[str, Weight]:
    """Returns name -> weight for the parameters of `Decoder`; without `head`, not the output matrix of logits."""
    D, V, L = arch.hidden, arch.vocab, arch.layers
    family, matrices, parts = FAMILIES[arch.family], layer_matrices(arch), fused_parts(arch)
    vectors = layer_norms(arch) | layer_biases(arch)

    def matrix(name: str) -> Weight:
        shape, axes = matrices[name]
        weight = Weight((L, *shape), ("layer", *axes), f"{family.module(name)}.weight", part=parts.get(name))
        return replace(weight, in_by_out=True) if family.in_by_out else replace(weight, linear=True)

    def vector(name: str) -> Weight:
        shape, axes = vectors[name]
        of_module = f"{family.module(name.removesuffix('_bias'))}.{'bias' if name.endswith('_bias') else 'weight'}"
        part = parts.get(name.removesuffix("_bias"))
        return Weight((L, *shape), ("layer", *axes), of_module, part=part and replace(part, rows=False))

    table = {"embed": Weight((V, D), ("vocab", "embed"), f"{family.module('embed')}.weight")}
    if arch.learned_positions:
        table["positions"] = Weight((arch.max_positions, D), (None, "embed"), f"{family.module('positions')}.weight")
    for name in ("attn_norm", "q", "k", "v", "o", "mlp_norm", "gate", "up", "down"):
        if name in matrices or name in vectors:
            table[name] = matrix(name) if name in matrices else vector(name)
    table["final_norm"] = Weight((D,), ("embed",), f"{family.module('final_norm')}.weight")
    table |= {name: vector(name) for name in vectors if name not in table}
    if arch.layer_norm:
        table["final_norm_bias"] = Weight((D,), ("embed",), f"{family.module('final_norm')}.bias")
    if head and not arch.tied:
        table["unembed"] = Weight((D, V), ("embed", "vocab"), f"{family.module('unembed')}.weight", linear=True)
    return table


def layer_matrices(arch: Arch) -> dict[str, Dims]:
    """Returns shape and axes of each matrix of a layer."""
    D, N, K, H, F = arch.hidden, arch.heads, arch.kv_heads, arch.head_dim, arch.mlp
    kv, mlp = ("embed", "kv_heads", "head"), ((D, F), ("embed", "mlp"))
    gate = {"gate": mlp} if arch.gated else {}
    return {
        "q": ((D, N, H), ("embed", "heads", "head")),
        "k": ((D, K, H), kv),
        "v": ((D, K, H), kv),
        "o": ((N, H, D), ("heads", "head", "embed")),
        **gate,
        "up": mlp,
        "down": ((F, D), ("mlp", "embed")),
    }


def layer_norms(arch: Arch) -> dict[str, Dims]:
    """Returns shape and axes of each norm of a layer, and of its bias where it has one."""
    D, N, K, H = arch.hidden, arch.heads, arch.kv_heads, arch.head_dim
    hidden: Dims = ((D,), ("embed",))
    norms: dict[str, Dims] = dict.fromkeys(("attn_norm", "mlp_norm"), hidden) if arch.pre_norms else {}
    if arch.qk_norm and arch.qk_norm_of_heads:
        norms |= dict.fromkeys(("q_norm", "k_norm"), ((H,), ("head",)))
    elif arch.qk_norm:
        norms |= {"q_norm": ((N, H), ("heads", "head")), "k_norm": ((K, H), ("kv_heads", "head"))}
    norms |= dict.fromkeys(("attn_post_norm", "mlp_post_norm"), hidden) if arch.post_norms else {}
    return norms | {f"{name}_bias": of_norm for name, of_norm in norms.items() if arch.layer_norm}


def layer_biases(arch: Arch) -> dict[str, Dims]:
    """Returns shape and axes of the biases of a layer's matrices."""
    D, N, K, H, F = arch.hidden, arch.heads, arch.kv_heads, arch.head_dim, arch.mlp
    kv, hidden, mlp = ((K, H), ("kv_heads", "head")), ((D,), ("embed",)), ((F,), ("mlp",))
    qkv = {"q_bias": ((N, H), ("heads", "head")), "k_bias": kv, "v_bias": kv} if arch.qkv_bias else {}
    gate = {"gate_bias": mlp} if arch.gated else {}
    return {
        **qkv,
        **({"o_bias": hidden} if arch.out_bias else {}),
        **(gate | {"up_bias": mlp, "down_bias": hidden} if arch.mlp_bias else {}),
    }


def fused_parts(arch: Arch) -> Mapping[str, Part]:
    """Returns the place of each matrix in a tensor that it shares with others, which have the same name."""
    family, heads = FAMILIES[arch.family], arch.heads
    sizes = {"q": heads, "k": arch.kv_heads, "v": arch.kv_heads}
    sizes = {name: count * arch.head_dim for name, count in sizes.items()} | {"gate": arch.mlp, "up": arch.mlp}
    parts = {}
    for group in (("q", "k", "v"), ("gate", "up")):
        if len({family.module(name) for name in group}) > 1 or (group[0] == "gate" and not arch.gated):
            continue
        whole, start = sum(sizes[name] for name in group), 0
        repeats = heads if family.fused_by_head else 1  # q, k and v of one head lie together
        for name in group:
            parts[name] = Part(start, sizes[name] // repeats, whole // repeats, whole, rows=not family.in_by_out)
            start += sizes[name] // repeats
    return parts
