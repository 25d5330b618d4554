"""The device mesh, and where weights and rows lie on it."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from pod_job.config.schema import MeshConfig, Sharding
from pod_job.errors import JobError
from pod_job.models.placement import Placement
from pod_job.models.sharding import ROW_AXES, rules
from pod_job.models.weight_table import Weight


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """Returns a mesh with axes `data` and `model` over all devices of all hosts, in an order that suits their network.

    `devices`: those of a pod that is only compiled for; by default the ones there are.
    """
    devices = jax.devices() if devices is None else devices
    if config.data * config.model != len(devices):
        raise JobError(
            f"mesh.data={config.data} x mesh.model={config.model} is {config.data * config.model} devices, "
            f"but the pod has {len(devices)}; set mesh to the pod's shape"
        )
    axis_types = (AxisType.Auto,) * 2
    return jax.make_mesh((config.data, config.model), ("data", "model"), axis_types=axis_types, devices=devices)


def weight_shardings(mesh: Mesh, sharding: Sharding, table: Mapping[str, Weight]) -> dict[str, NamedSharding]:
    """Returns the sharding of each weight by name."""
    split = rules(table, mesh.shape["model"], sharding)
    return {
        name: NamedSharding(mesh, PartitionSpec(*(split.get(axis) if axis else None for axis in weight.axes)))
        for name, weight in table.items()
    }


def placement(mesh: Mesh, sharding: Sharding, weights: Mapping[str, NamedSharding], kernels: bool = True) -> Placement:
    """Returns the mesh as the model needs it; `weights` as from `weight_shardings`, `kernels` as configured."""
    return Placement(
        mesh=mesh,
        rows=ROW_AXES[sharding],
        weights=weights["embed"].spec[1],
        heads=weights["k"].spec[2] if "k" in weights else None,
        delta_heads=weights["delta_k"].spec[2] if "delta_k" in weights else None,
        experts=weights["up"].spec[1] if "router" in weights else None,
        kernels=kernels,
    )


def row_sharding(mesh: Mesh, sharding: Sharding) -> NamedSharding:
    """Returns the sharding of arrays whose first dimension is a step's rows."""
    return NamedSharding(mesh, PartitionSpec(ROW_AXES[sharding]))
