"""Vectors in the dtype that is stored, while they are still on the device: less has to cross to the host."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from pod_job.formats.quantized import GROUP, LARGEST, SCALE, groups, is_eight_bit


def as_stored(vectors: Float[Array, "*B D"], dtype: np.dtype) -> Shaped[Array, "*B _"]:
    """Returns the vectors in `dtype`; for eight bits rows of bytes, as formats/quantized.py lays them out."""
    return _quantize(vectors, dtype) if is_eight_bit(dtype) else vectors.astype(dtype)


def _quantize(vectors: Float[Array, "*B D"], dtype: np.dtype) -> Shaped[Array, "*B _"]:
    width = vectors.shape[-1]
    G = groups(width)
    wide = jnp.pad(vectors.astype(jnp.float32), [(0, 0)] * (vectors.ndim - 1) + [(0, G * GROUP - width)])
    grouped = wide.reshape(*vectors.shape[:-1], G, GROUP)
    # NaN and infinity stay in the scale, so that the row is seen not to be finite.
    scales = (jnp.max(jnp.abs(grouped), axis=-1) / LARGEST[dtype.name]).astype(SCALE)
    scale = scales.astype(jnp.float32)[..., None]
    usable = jnp.isfinite(scale) & (scale > 0)
    scaled = jnp.where(usable, grouped / jnp.where(usable, scale, 1.0), 0.0)
    values = (jnp.round(scaled) if dtype.name == "int8" else scaled).astype(dtype)
    lost = jnp.linalg.norm(values.astype(jnp.float32) * scale - grouped, axis=(-2, -1))
    error = lost / jnp.maximum(jnp.linalg.norm(grouped, axis=(-2, -1)), jnp.finfo(jnp.float32).tiny)
    values = values.reshape(*vectors.shape[:-1], G * GROUP)[..., :width]
    return jnp.concatenate([_bytes(values), _bytes(scales), _bytes(error[..., None])], axis=-1)


def _bytes(array: Shaped[Array, "*B n"]) -> Shaped[Array, "*B bytes"]:
    length = array.shape[-1] * array.dtype.itemsize
    return jax.lax.bitcast_convert_type(array, jnp.uint8).reshape(*array.shape[:-1], length)
