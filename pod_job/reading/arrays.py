"""Conversion of NumPy vectors to torch or JAX arrays, without a copy where possible."""

from typing import Any, Literal

import ml_dtypes
import numpy as np

Kind = Literal["numpy", "torch", "jax"]


def _to_torch(vectors: np.ndarray) -> Any:
    import torch

    if vectors.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(vectors.view(np.int16)).view(torch.bfloat16)  # from_numpy refuses ml_dtypes
    return torch.from_numpy(vectors)


def _to_jax(vectors: np.ndarray) -> Any:
    import jax.numpy as jnp

    return jnp.asarray(vectors)


CONVERT = {
    "numpy": lambda vectors: vectors,
    "torch": _to_torch,
    "jax": _to_jax,
}
