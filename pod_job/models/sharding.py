"""Sharding of weights and rows over the mesh axes: one table of rules, and what they mean for a model. No jax.

A rule maps a logical axis (named once per weight in models/weight_table.py) to a mesh axis.
"""

from collections.abc import Mapping

from pod_job.config.schema import MeshConfig, Sharding
from pod_job.errors import JobError
from pod_job.models.weight_table import Weight

# Logical axes that are split over the mesh axis `model`; those of one group all together or not at all.
SPLIT: dict[Sharding, tuple[tuple[str, ...], ...]] = {
    Sharding.replicated: (),
    # Every large weight has one `embed` axis: it is split over `model` and gathered layer by layer.
    Sharding.fsdp: (("embed",),),
    # Query heads stay with the key/value heads that they look at.
    Sharding.tensor: (("heads", "kv_heads"), ("delta_keys", "delta_values"), ("mlp",), ("expert",), ("vocab",)),
}

# Mesh axes over which a step's rows are split.
ROW_AXES: dict[Sharding, tuple[str, ...]] = {
    Sharding.replicated: ("data", "model"),
    Sharding.fsdp: ("data", "model"),
    Sharding.tensor: ("data",),
}

AXIS_NAMES = {
    "embed": "hidden size",
    "heads": "query heads",
    "kv_heads": "key/value heads",
    "delta_keys": "key heads of delta rules",
    "delta_values": "value heads of delta rules",
    "mlp": "mlp size",
    "expert": "experts",
    "vocab": "vocabulary",
}


def row_shards(mesh: MeshConfig, sharding: Sharding) -> int:
    """Returns into how many parts a step's rows are split."""
    return mesh.data if sharding is Sharding.tensor else mesh.data * mesh.model


def rules(table: Mapping[str, Weight], parts: int, sharding: Sharding) -> dict[str, str]:
    """Returns {logical axis: mesh axis} for a mesh axis `model` of `parts` devices.

    A group of axes that `parts` does not divide stays whole on every device: the others are split all the same.
    """
    sizes = axis_sizes(table)
    return {axis: "model" for group in groups(sizes, sharding) if divides(parts, sizes, group) for axis in group}


def groups(sizes: Mapping[str, int], sharding: Sharding) -> list[tuple[str, ...]]:
    """Returns the groups of logical axes that a model has and the sharding splits."""
    return [group for group in SPLIT[sharding] if all(axis in sizes for axis in group)]


def divides(parts: int, sizes: Mapping[str, int], group: tuple[str, ...]) -> bool:
    return all(sizes[axis] % parts == 0 for axis in group)


def axis_sizes(table: Mapping[str, Weight]) -> dict[str, int]:
    """Returns the size of each logical axis."""
    return {
        axis: size
        for weight in table.values()
        for axis, size in zip(weight.axes, weight.shape, strict=True)
        if axis is not None
    }


def sharding_line(table: Mapping[str, Weight], mesh: MeshConfig, sharding: Sharding) -> str:
    """Returns one line for people: the axes that are split, and those that are whole on every device."""
    sizes, split = axis_sizes(table), rules(table, mesh.model, sharding)
    axes = [axis for group in groups(sizes, sharding) for axis in group]

    def listed(chosen: list[str]) -> str:
        return ", ".join(f"{AXIS_NAMES[axis]} {sizes[axis]}" for axis in chosen) or "nothing"

    whole = [axis for axis in axes if axis not in split]
    line = f"weights {sharding.value}: split {mesh.model} ways over model: {listed([a for a in axes if a in split])}"
    return f"{line}; whole on every device, as {mesh.model} does not divide it: {listed(whole)}" if whole else line


def check_divides(table: Mapping[str, Weight], mesh: MeshConfig, sharding: Sharding) -> None:
    """Raises JobError where a mesh axis divides nothing of what it would split, with the sizes that do.

    Experts, nearly all of a model that has them, must be split where the sharding splits them.
    """
    sizes = axis_sizes(table)
    experts = ("expert",)

    def fitting(parts: int) -> bool:
        split = rules(table, parts, sharding)
        return "expert" in split if experts in groups(sizes, sharding) else bool(split)

    if sharding is Sharding.replicated or fitting(mesh.model):
        return
    must = [experts] if experts in groups(sizes, sharding) else groups(sizes, sharding)
    what = ", ".join(f"{AXIS_NAMES[axis]} {sizes[axis]}" for group in must for axis in group)
    fits = ", ".join(str(n) for n in range(1, mesh.model) if fitting(n))
    other = Sharding.fsdp if sharding is Sharding.tensor else Sharding.tensor
    elsewhere = other if rules(table, mesh.model, other) else Sharding.replicated
    raise JobError(
        f"mesh.model={mesh.model} does not divide what sharding={sharding.value} splits ({what}); "
        f"use {fits}, or sharding={elsewhere.value}"
    )
