"""Positions that hold no token are left out on a CPU: what is computed is as if all were."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pod_job.models.position_blocks import BLOCK, filled_blocks, over_blocks, padding_apart


@pytest.mark.parametrize("positions", [BLOCK // 2, BLOCK, 2 * BLOCK + 3, 5 * BLOCK])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_filled_blocks_are_computed_and_others_are_zeros(positions: int, share: float, dtype: str) -> None:
    filled = int(share * positions)
    x = np.random.default_rng(1).normal(size=(2, positions, 4)).astype(dtype)
    segment_ids = np.zeros((2, positions), np.int32)
    segment_ids[1, :filled] = 1  # the longest row counts
    made = jax.jit(lambda x, ids: over_blocks(lambda x: {"halved": x / 2}, filled_blocks(ids), x))(x, segment_ids)
    found = np.asarray(made["halved"])
    computed = -(-filled // BLOCK) * BLOCK
    np.testing.assert_array_equal(found[:, :computed], x[:, :computed] / 2)
    assert not found[:, computed:].any() or computed > positions - BLOCK  # the last block moves back to end the row


def test_a_position_of_padding_is_a_segment_of_its_own() -> None:
    segment_ids = jnp.array([[1, 1, 2, 0, 0], [0, 0, 0, 0, 0]])
    apart = np.asarray(padding_apart(segment_ids))
    assert apart[0, :3].tolist() == [1, 1, 2]
    padding = [*apart[0, 3:], *apart[1]]
    assert len(set(padding)) == 5  # in each row, all of them differ
    assert max(padding) < 0
