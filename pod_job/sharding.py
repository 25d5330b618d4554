"""How weights and rows are split over the mesh axes: one table of rules per `sharding`, and the checks. No jax.

A rule maps a logical axis (named once per weight in models/weight_table.py) to a mesh axis.
"""

from pod_job.arch import Arch
from pod_job.config import MeshConfig, Sharding
from pod_job.errors import JobError

RULES: dict[Sharding, dict[str, str]] = {
    Sharding.replicated: {},
    # Every weight has one `embed` axis: it is split over `model` and gathered layer by layer.
    Sharding.fsdp: {"embed": "model"},
    Sharding.tensor: {"heads": "model", "kv_heads": "model", "mlp": "model", "vocab": "model"},
}

# Mesh axes over which a step's rows are split.
ROW_AXES: dict[Sharding, tuple[str, ...]] = {
    Sharding.replicated: ("data", "model"),
    Sharding.fsdp: ("data", "model"),
    Sharding.tensor: ("data",),
}


def row_shards(mesh: MeshConfig, sharding: Sharding) -> int:
    """Into how many parts a step's rows are split."""
    return mesh.data if sharding is Sharding.tensor else mesh.data * mesh.model


def check_divides(arch: Arch, mesh: MeshConfig, sharding: Sharding) -> None:
    """Raises JobError where a mesh axis does not divide what it would split, with the sizes that do."""
    sizes = {
        "embed": ("hidden size", arch.hidden),
        "heads": ("query heads", arch.heads),
        "kv_heads": ("key/value heads", arch.kv_heads),
        "mlp": ("mlp size", arch.mlp),
        "vocab": ("vocabulary", arch.vocab),
    }
    split = [sizes[axis] for axis in RULES[sharding]]
    for what, size in split:
        if size % mesh.model:
            fits = [str(n) for n in range(1, mesh.model) if all(other % n == 0 for _, other in split)]
            elsewhere = "fsdp" if sharding is Sharding.tensor and arch.hidden % mesh.model == 0 else "replicated"
            raise JobError(
                f"mesh.model={mesh.model} does not divide the {size} {what} of {arch.family}; "
                f"use {', '.join(fits)}, or sharding={elsewhere}"
            )
