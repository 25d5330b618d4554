"""Every weight of a decoder, stated once: shape, logical axes, and its place in a Hugging Face checkpoint. No jax.

Shapes: D hidden, N query heads, K key/value heads, H head size, F mlp, V vocabulary, P positions, L layers, E experts.
A weight with a `layer` axis is stacked over the layers that have it; its checkpoint name has a `{}` for the layer, and
another for the expert where each expert has a tensor of its own.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int

from pod_job.models.arch import Arch
from pod_job.models.families import FAMILIES
from pod_job.models.layer_weights import (
    OF_ATTENTION,
    OF_DELTA,
    Axes,
    Dims,
    layer_biases,
    layer_matrices,
    layer_norms,
)


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
        depthwise: the checkpoint holds a torch Conv1d with one filter for each channel, [out, 1, in].
        layers: the layers that have it, in the order of the stack; None: all.
    """

    shape: tuple[int, ...]
    axes: Axes
    checkpoint_name: str
    linear: bool = False
    in_by_out: bool = False
    part: Part | None = None
    experts_fused: bool = False
    depthwise: bool = False
    layers: tuple[int, ...] | None = None

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
        if self.depthwise:
            return (shape[0], 1, *shape[1:])
        return (self.stack[-1], *shape) if self.experts_fused else shape

    @property
    def places(self) -> list[tuple[str, int]]:
        """Tensor of each place of the stack, in order, and the row at which the place begins in it."""
        if not self.stack:
            return [(self.checkpoint_name, 0)]
        layers = range(self.stack[0]) if self.layers is None else self.layers
        indices = itertools.product(layers, *map(range, self.stack[1:]))
        if not self.experts_fused:
            return [(self.checkpoint_name.format(*index), 0) for index in indices]
        rows = self.checkpoint_shape[1] if len(self.checkpoint_shape) > 2 else 1
        return [(self.checkpoint_name.format(layer), expert * rows) for layer, expert in indices]


def weight_table(arch: Arch, head: bool = True) -> dict[str, Weight]:
    """Returns name -> weight for the parameters of `Decoder`; without `head`, not the output matrix of logits."""
    D, V = arch.hidden, arch.vocab
    family, matrices, parts = FAMILIES[arch.family], layer_matrices(arch), fused_parts(arch)
    vectors = layer_norms(arch) | layer_biases(arch)

    def stacked(name: str, dims: Dims, tensor: str, part: Part | None) -> Weight:
        (shape, axes), layers = dims, layers_with(arch, name)
        fused = family.experts_fused and "expert" in axes
        shape = (arch.layers if layers is None else len(layers), *shape)
        return Weight(shape, ("layer", *axes), tensor, part=part, experts_fused=fused, layers=layers)

    def matrix(name: str) -> Weight:
        weight = stacked(name, matrices[name], family.tensor(name), parts.get(name))
        in_by_out = weight.experts_fused or family.in_by_out
        return replace(weight, linear=not in_by_out, in_by_out=in_by_out, depthwise=name.endswith("_conv"))

    def vector(name: str) -> Weight:
        part = parts.get(name.removesuffix("_bias"))
        part = part and replace(part, rows=False)
        tensor = family.tensor(name.removesuffix("_bias"), bias=name.endswith("_bias"))
        return stacked(name, vectors[name], tensor, part)

    table = {"embed": Weight((V, D), ("vocab", "embed"), f"{family.module('embed')}.weight")}
    if arch.learned_positions:
        table["positions"] = Weight((arch.max_positions, D), (None, "embed"), f"{family.module('positions')}.weight")
    # Attention, then the mlp; norms among the matrices, in the order in which a layer has them.
    first = [name for name in matrices if name in OF_ATTENTION or name.startswith(OF_DELTA)]
    for name in ("attn_norm", *first, "mlp_norm", *(name for name in matrices if name not in first)):
        if name in matrices or name in vectors:
            table[name] = matrix(name) if name in matrices else vector(name)
    table["final_norm"] = Weight((D,), ("embed",), f"{family.module('final_norm')}.weight")
    table |= {name: vector(name) for name in vectors if name not in table}
    if arch.layer_norm:
        table["final_norm_bias"] = Weight((D,), ("embed",), f"{family.module('final_norm')}.bias")
    if head and not arch.tied:
        table["unembed"] = Weight((D, V), ("embed", "vocab"), f"{family.module('unembed')}.weight", linear=True)
    return {name: weight for name, weight in table.items() if weight.layers != ()}


def layers_with(arch: Arch, name: str) -> tuple[int, ...] | None:
    """Returns the layers that have a weight of a layer; None where all layers have the same weights."""
    if arch.delta is None:
        return None
    of_attention = name.removesuffix("_bias").removesuffix("_norm") in OF_ATTENTION
    if not of_attention and not name.startswith(OF_DELTA):
        return None
    return tuple(i for i, layer in enumerate(arch.attention) if layer.delta is not of_attention)


def neutral_norm(arch: Arch, name: str) -> float:
    """Returns the value of a norm's weight that changes nothing."""
    return 0.0 if arch.norm_plus_one and not name.startswith(OF_DELTA) else 1.0


def fused_parts(arch: Arch) -> Mapping[str, Part]:
    """Returns the place of each matrix in a tensor that it shares with others, which have the same name."""
    family = FAMILIES[arch.family]
    sizes = {
        name: math.prod(size for size, axis in zip(*dims, strict=True) if axis not in ("embed", "expert", None))
        for name, dims in layer_matrices(arch).items()
    }
    sharing: dict[str, list[str]] = {}
    for name in sizes:
        sharing.setdefault(family.module(name), []).append(name)
    parts = {}
    for group in (names for names in sharing.values() if len(names) > 1):
        whole, start = sum(sizes[name] for name in group), 0
        in_turns = arch.mlp if family.experts_fused and group[0] == "gate" else 1
        repeats = in_turns
        if group[0] in family.fused_by_head:  # those of one head lie together
            repeats = arch.delta.key_heads if arch.delta and group[0].startswith(OF_DELTA) else arch.heads
        rows = not (family.in_by_out or in_turns > 1)
        for name in group:
            parts[name] = Part(start, sizes[name] // repeats, whole // repeats, whole, rows=rows)
            start += sizes[name] // repeats
    return parts
