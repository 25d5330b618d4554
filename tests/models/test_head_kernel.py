"""The kernel of heads gives what norm, projection, norm and rotation give one after the other."""

import jax.numpy as jnp
import numpy as np
import pytest

from pod_job.models.head_kernel import Turn, projected_heads
from pod_job.models.layer_attention import rotary_tables, rotate, swap_halves
from pod_job.models.rope import Rope

B, S, D, N, H, EPS = 2, 128, 64, 3, 128, 1e-3


@pytest.mark.parametrize("turns", [True, False], ids=["queries", "values"])
def test_heads_are_projected_normed_and_rotated(turns: bool) -> None:
    rng = np.random.default_rng(0)
    x, norm, w, scale = (jnp.asarray(rng.normal(size=size)) for size in ((B, S, D), (D,), (D, N, H), (H,)))
    positions = jnp.asarray(rng.integers(0, 500, (B, S)))
    tables = rotary_tables(positions, Rope(theta=1000.0).frequencies(H), H)
    normed = x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + EPS) * norm
    expected = jnp.einsum("bsd,dnh->bsnh", normed, w, precision="highest")
    if turns:
        heads = expected / jnp.sqrt(jnp.mean(expected**2, axis=-1, keepdims=True) + EPS) * scale
        expected = rotate(heads, swap_halves(heads), *tables)
    turn = Turn(scale, *tables) if turns else None
    found = projected_heads(x, norm, w, turn, eps=EPS, interpret=True)
    np.testing.assert_allclose(found.transpose(0, 2, 1, 3), expected, rtol=1e-4, atol=1e-4)
