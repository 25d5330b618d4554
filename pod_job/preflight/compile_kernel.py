"""`python -m pod_job.preflight.compile_kernel`: compiles one kernel for TPU; libtpu writes what its flags ask for."""

import functools
import sys
from typing import Any

import jax
import jax.numpy as jnp

from pod_job.models.attention import attend_splash
from pod_job.models.attention_settings import AttentionSettings, Heads
from pod_job.models.cache import KeyValues
from pod_job.models.cache_kernel import block_slots, sums_by_kernel
from pod_job.models.cached_attention import CachedLayer, View
from pod_job.preflight.kernel_bundles import CacheKernelShape, KernelShape
from pod_job.preflight.pod_devices import pod_devices
from pod_job.preflight.tpu_facts import read_accelerator_type

OPTIONS: dict[str, Any] = {"xla_tpu_scoped_vmem_limit_kib": "32768"}


@functools.cache
def on_one_chip(accelerator_type: str) -> jax.sharding.SingleDeviceSharding:
    return jax.sharding.SingleDeviceSharding(pod_devices(read_accelerator_type(accelerator_type))[0])


def argument(accelerator_type: str, dtype: Any, *sizes: int) -> Any:
    return jax.ShapeDtypeStruct(sizes, dtype, sharding=on_one_chip(accelerator_type))


def compile_splash(shape: KernelShape) -> None:
    """Compiles the kernel of prefill for two rows and two key/value heads."""

    def of(dtype: Any, *sizes: int) -> Any:
        return argument(shape.accelerator_type, dtype, 2, shape.S, *sizes)

    q, k = (of(jnp.bfloat16, heads, shape.head) for heads in (2 * shape.group, 2))
    settings = AttentionSettings(shape.head**-0.5, shape.softcap, shape.window, shape.heads_apart)
    compiled = jax.jit(lambda heads, segments: attend_splash(heads, segments, settings))
    compiled.lower(Heads(q, k, k, None), of(jnp.int32)).compile(OPTIONS)


def compile_cached(shape: CacheKernelShape) -> None:
    """Compiles the kernel of decode for two rows and two layers."""

    def of(dtype: Any, *sizes: int) -> Any:
        return argument(shape.accelerator_type, dtype, *sizes)

    queries = of(jnp.bfloat16, 2, shape.kv_heads, shape.group, shape.head)
    kept = of(jnp.bfloat16, 2, 2, shape.kv_heads, shape.head, shape.slots)
    T = block_slots("tpu", shape.slots, shape.kv_heads * shape.head, jnp.dtype(jnp.bfloat16))
    assert T is not None
    turns = of(jnp.int32, 2 * (shape.slots // T) + 1)
    view = View(of(jnp.int32), of(jnp.int32, 2), of(jnp.float32), turns)
    cached = CachedLayer(KeyValues(kept, kept), of(jnp.int32), view)
    compiled = jax.jit(lambda queries, cached: sums_by_kernel(queries, cached, shape.softcap))
    compiled.lower(queries, cached).compile(OPTIONS)


def optional(text: str) -> float | None:
    return float(text) if text else None


def main(kind: str, accelerator_type: str, *sizes: str) -> None:
    """Compiles the kernel of this shape."""
    if kind == KernelShape.__name__:
        *counts, window, softcap, apart = sizes
        S, group, head = map(int, counts)
        reach = int(window) if window else None
        compile_splash(KernelShape(accelerator_type, S, group, head, reach, optional(softcap), apart == "True"))
    else:
        *counts, softcap = sizes
        slots, kv_heads, group, head = map(int, counts)
        compile_cached(CacheKernelShape(accelerator_type, slots, kv_heads, group, head, optional(softcap)))


if __name__ == "__main__":
    main(*sys.argv[1:])
