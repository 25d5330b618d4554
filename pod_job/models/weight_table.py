"""Every weight of a decoder, stated once: shape, logical axes, and its place in a Hugging Face checkpoint. No jax.

Shapes: D hidden, N query heads, K key/value heads, H head size, F mlp, V vocabulary, P positions, L layers, E experts.
A weight with a `layer` axis is stacked over all layers; its checkpoint name has one `{}` for the layer, and another for
the expert where each expert has a tensor of its own.
"""

import itertools
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
        experts_fused: all experts of a layer are one tensor in the checkpoint, with a first dimension for them.
    """

    shape: tuple[int, ...]
    axes: Axes
    checkpoint_name: str
    linear: bool = False
    in_by_out: bool = False
    part: Part | None = None
    experts_fused: bool = False

    @property
    def stacked(self) -> bool:
        return self.axes[0] == "layer"

    @property
    def stack(self) -> tuple[int, ...]:
        """Sizes of the dimensions over which our array is stacked: layers, and experts in them."""
        return self.shape[: int(self.stacked) + int(self.axes[1:2] == ("expert",))]

    @property
    def leading_dims(self) -> int:
        """How many of our dimensions, those of the stack aside, are a matrix's inputs, or the first of a table's."""
        axes = self.axes[len(self.stack) :]
        if self.linear or self.in_by_out:
            return len(axes) - 1 if axes[-1] == "embed" else 1
        return 1 if len(self.part_shape) == 2 else 0

    @property
    def part_shape(self) -> tuple[int, ...]:
        """Shape of ours in the checkpoint, of one place of the stack."""
        shape = self.shape[len(self.stack) :]
        if not (self.linear or self.in_by_out):
            return (math.prod(shape),) if "head" in self.axes else shape
        inputs, outputs = math.prod(shape[: self.leading_dims]), math.prod(shape[self.leading_dims :])
        return (outputs, inputs) if self.linear else (inputs, outputs)

    @property
    def checkpoint_shape(self) -> tuple[int, ...]:
        """Shape of the tensor in the checkpoint, of one layer where the weight is stacked."""
        shape, part = self.part_shape, self.part
        if part is not None:
            shape = (part.whole, *shape[1:]) if part.rows else (*shape[:-1], part.whole)
        return (self.stack[-1], *shape) if self.experts_fused else shape

    @property
    def places(self) -> list[tuple[str, int]]:
        """Tensor of each place of the stack, in order, and the row at which the place begins in it."""
        if not self.stack:
            return [(self.checkpoint_name, 0)]
        indices = itertools.product(*map(range, self.stack))
        if not self.experts_fused:
            return [(self.checkpoint_name.format(*index), 0) for index in indices]
        rows = self.checkpoint_shape[1] if len(self.checkpoint_shape) > 2 else 1
        return [(self.checkpoint_name.format(layer), expert * rows) for layer, expert in indices]


def weight_table(arch: Arch, head: bool = True) -> dict[str, Weight]:
    """Returns name -> weight for the parameters of `Decoder`; without `head`, not the output matrix of logits."""
    D, V, L = arch.hidden, arch.vocab, arch.layers
    family, matrices, parts = FAMILIES[arch.family], layer_matrices(arch), fused_parts(arch)
    vectors = layer_norms(arch) | layer_biases(arch)

    def matrix(name: str) -> Weight:
        shape, axes = matrices[name]
        weight = Weight((L, *shape), ("layer", *axes), family.tensor(name), part=parts.get(name))
        fused = family.experts_fused and "expert" in axes
        in_by_out = fused or family.in_by_out
        return replace(weight, linear=not in_by_out, in_by_out=in_by_out, experts_fused=fused)

    def vector(name: str) -> Weight:
        shape, axes = vectors[name]
        tensor = family.tensor(name.removesuffix("_bias"), bias=name.endswith("_bias"))
        part, fused = parts.get(name.removesuffix("_bias")), family.experts_fused and "expert" in axes
        part = part and replace(part, rows=False)
        return Weight((L, *shape), ("layer", *axes), tensor, part=part, experts_fused=fused)

    table = {"embed": Weight((V, D), ("vocab", "embed"), f"{family.module('embed')}.weight")}
    if arch.learned_positions:
        table["positions"] = Weight((arch.max_positions, D), (None, "embed"), f"{family.module('positions')}.weight")
    for name in ("attn_norm", "q", "k", "v", "o", "mlp_norm", "router", "gate", "up", "down"):
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
    kv, mlp, down = ("embed", "kv_heads", "head"), ((D, F), ("embed", "mlp")), ((F, D), ("mlp", "embed"))
    router: dict[str, Dims] = {}
    if E := arch.experts:
        # Experts are split among devices, or each of them whole: hence another axis than that of a plain mlp.
        mlp, down = ((E, D, F), ("expert", "embed", "expert_mlp")), ((E, F, D), ("expert", "expert_mlp", "embed"))
        router = {"router": ((D, E), ("embed", None))}
    gate = {"gate": mlp} if arch.gated else {}
    return {
        "q": ((D, N, H), ("embed", "heads", "head")),
        "k": ((D, K, H), kv),
        "v": ((D, K, H), kv),
        "o": ((N, H, D), ("heads", "head", "embed")),
        **router,
        **gate,
        "up": mlp,
        "down": down,
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
    """Returns shape and axes of the biases of a layer's matrices, and of the sinks of its heads."""
    D, N, K, H, F, E = arch.hidden, arch.heads, arch.kv_heads, arch.head_dim, arch.mlp, arch.experts
    kv, hidden = ((K, H), ("kv_heads", "head")), ((D,), ("embed",))
    mlp: Dims = ((E, F), ("expert", "expert_mlp")) if E else ((F,), ("mlp",))
    down: Dims = ((E, D), ("expert", "embed")) if E else hidden
    qkv = {"q_bias": ((N, H), ("heads", "head")), "k_bias": kv, "v_bias": kv} if arch.qkv_bias else {}
    gate = {"gate_bias": mlp} if arch.gated else {}
    return {
        **qkv,
        **({"o_bias": hidden} if arch.out_bias else {}),
        **({"sinks": ((N,), ("heads",))} if arch.sinks else {}),
        **({"router_bias": ((E,), (None,))} if arch.router_bias else {}),
        **(gate | {"up_bias": mlp, "down_bias": down} if arch.mlp_bias else {}),
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
        in_turns = arch.mlp if family.experts_fused and group[0] == "gate" else 1
        repeats = heads if family.fused_by_head else in_turns  # q, k and v of one head lie together
        rows = not (family.in_by_out or in_turns > 1)
        for name in group:
            parts[name] = Part(start, sizes[name] // repeats, whole // repeats, whole, rows=rows)
            start += sizes[name] // repeats
    return parts
