"""Placement of a model on the mesh it is compiled for: what its layers need to know about devices, as one value."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from pod_job.models.bits import HALF

KERNEL_KIND = "TPU v6 lite"
"""Kind of the devices that the kernels of experts and of heads are compiled for and counted on."""


@dataclass(frozen=True)
class Placement:
    """Mesh axes by what they split; by default one device of any kind, and nothing is split.

    Attributes:
        rows: axes that split the rows of a step.
        weights: the axis over which weights are split along the hidden size and from which a layer's are gathered
            while it runs (fsdp); None: they stay where they are.
        heads: the axis that splits the heads of attention (tensor); None: every device has all heads of its rows.
        delta_heads: the axis that splits the heads of gated delta rules (tensor), as `heads` does.
        experts: the axis that splits the experts of a mixture (tensor); None: every device has all of them.
        kernels: whether this package's own kernels may run on TPU.
    """

    mesh: Mesh | None = None
    rows: tuple[str, ...] = ()
    weights: str | None = None
    heads: str | None = None
    delta_heads: str | None = None
    experts: str | None = None
    kernels: bool = True

    @property
    def platform(self) -> str | None:
        """Platform of the devices the program is lowered for, present or not: tpu, gpu or cpu; None: any."""
        return None if self.mesh is None else self.mesh.devices.flat[0].platform

    @property
    def device_kind(self) -> str | None:
        """Kind of the devices as jax names it, such as `TPU v6 lite`; None: any."""
        return None if self.mesh is None else self.mesh.devices.flat[0].device_kind

    @property
    def kernel_kind(self) -> str | None:
        """Kind of the devices that this package's own kernels may run on; None: on none of this mesh."""
        return self.device_kind if self.kernels else None

    @property
    def compiler_options(self) -> dict[str, str | bool] | None:
        """Options for every program that runs the model: on TPU, twice the usual memory of a core for one operation.

        Matrix products keep larger windows in it and wait less for what they read (Qwen2.5-0.5B on v5e: 3 ms of 47).
        """
        return {"xla_tpu_scoped_vmem_limit_kib": "32768"} if self.platform == "tpu" else None

    def gather(self, weight: Array) -> Array:
        """Returns a weight as a layer uses it: whole on every device, where it is split along the hidden size."""
        return weight if self.weights is None else self._place(weight, PartitionSpec())

    def kept_dtype(self, dtype: np.dtype | type) -> np.dtype | type:
        """Returns the dtype that keys and values are kept in: integers for those of bfloat16 on a CPU; see `bits`."""
        return HALF if self.platform == "cpu" and dtype == jnp.bfloat16 else dtype

    def entry(self, stack: Array, i: Int[Array, ""] | int) -> Array:
        """Returns entry i of a stack, in a loop over i.

        XLA on CPUs converts bfloat16 to float32 before it takes a part; without the barrier the whole stack, before the
        loop.
        """
        if self.platform == "cpu" and stack.dtype == jnp.bfloat16:
            stack, i = jax.lax.optimization_barrier((stack, i))
        return stack[i]

    def look_up(self, embedding: Float[Array, "V D"], ids: Int[Array, "B S"]) -> Float[Array, "B S D"]:
        """Returns rows of the embedding. Where it is split, devices look tokens up in their slice and exchange.

        So what crosses the network is the tokens' vectors, not the table.
        """
        if self.weights is None:
            return self._place(jnp.take(embedding, ids, axis=0, mode="clip"), PartitionSpec(self.rows))
        shared = tuple(axis for axis in self.rows if axis != self.weights)
        slices = jnp.take(embedding, self._place(ids, PartitionSpec(shared)), axis=0, mode="clip")
        slices = self._place(slices, PartitionSpec(shared, None, self.weights))
        return self._place(slices, PartitionSpec(self.rows))

    def row_major(self, x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        """Returns x with D innermost in memory on TPU; the compiler would take S, which slows every matrix product."""
        if self.platform != "tpu":
            return x
        # On each device's own rows: the partitioner would gather all of them for the constraint.
        rows = PartitionSpec(self.rows)
        innermost = Layout(major_to_minor=(0, 1, 2))
        return jax.shard_map(
            lambda x: with_layout_constraint(x, innermost),
            mesh=self.mesh,
            in_specs=rows,
            out_specs=rows,
            check_vma=False,
        )(x)

    def product(self, equation: str, x: Array, weight: Array) -> Array:
        """Returns the einsum in x's dtype."""
        return self.wide_product(equation, x, weight).astype(x.dtype)

    def wide_product(self, equation: str, x: Array, weight: Array) -> Array:
        """Returns the einsum in x's dtype; on a CPU, of bfloat16, in float32, which takes half the time.

        CPUs with instructions for bfloat16 have them for products with such a result; to another, XLA makes all factors
        float32 first.
        """
        if self.platform == "cpu" and x.dtype == jnp.bfloat16:
            equation = equation.replace("h", "z")  # in alphabetical order einsum sums over n, z as they lie in memory
            return jnp.einsum(equation, x, weight, preferred_element_type=jnp.float32)
        return jnp.einsum(equation, x, weight)

    def by_position(self, compute: Callable[..., Any], x: Any) -> Any:
        """Returns `compute(x)`, arrays [B, S, ...] whose positions depend on the same one of those in x only."""
        return compute(x)

    def of_some(self) -> "Placement":
        """Returns the placement of operations on a few positions of each row, all of which are computed."""
        return self

    def computed(self, positions: int) -> Int[Array, ""] | None:
        """Returns how many of so many positions `by_position` computes, from the first on; None: all."""
        return None

    def isolate(self, x: Array) -> Array:
        """Returns x, on TPU as a value of its own: a matrix product runs slower fused into the one that uses it."""
        return jax.lax.optimization_barrier(x) if self.platform == "tpu" else x

    def _place(self, x: Array, spec: PartitionSpec) -> Array:
        return x if self.mesh is None else jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, spec))
