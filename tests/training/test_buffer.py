"""The shuffle buffer gives every row once, mixes documents, and is the same whenever it runs."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from pod_job.training.buffer import Buffer, empty_buffer, exchange, from_words, put, take, to_words

M, SLOTS, STEPS, ROWS_OF_DOCUMENT = 64, 8, 40, 32
EXCHANGE, PUT, TAKE = jax.jit(exchange), jax.jit(put), jax.jit(take)


def arriving(step: int) -> tuple[dict[str, jax.Array], jax.Array]:
    """Returns rows that are their own numbers, of which a sixth is not valid."""
    numbers = step * M + jnp.arange(M)
    digits = jnp.stack([numbers // 256, numbers % 256], axis=1)  # bfloat16 has eight bits
    return {"a": digits.astype(jnp.float32)}, numbers % 6 != 1


def whole_run(seed: int) -> list[np.ndarray]:
    """Returns the numbers of the rows of each step, to the last one in the buffer."""
    buffer: Buffer = empty_buffer({"a": 2}, M, SLOTS)
    for slot in range(SLOTS):
        buffer = PUT(buffer, arriving(slot), jnp.int32(slot))
    steps = []
    for step in range(SLOTS, STEPS + SLOTS):
        slots = jnp.int32(step - STEPS)
        if step < STEPS:
            buffer, leaving = EXCHANGE(buffer, arriving(step), jax.random.fold_in(jax.random.key(seed), step))
        else:
            buffer, leaving = TAKE(buffer, slots)
        steps.append((np.asarray(leaving[0]["a"], int) @ [256, 1])[np.asarray(leaving[1])])
    return steps


def test_every_valid_row_leaves_once_and_no_other_does() -> None:
    numbers = np.arange(STEPS * M)
    assert sorted(np.concatenate(whole_run(0))) == list(numbers[numbers % 6 != 1])


def test_the_order_follows_from_the_seed() -> None:
    first, again, other = (np.concatenate(whole_run(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def same_document(steps: list[np.ndarray]) -> float:
    """Returns the share of pairs of rows of one step that are of one document."""
    pairs = [np.equal.outer(rows // ROWS_OF_DOCUMENT, rows // ROWS_OF_DOCUMENT) for rows in steps]
    return float(np.mean([np.mean(equal[~np.eye(len(equal), dtype=bool)]) for equal in pairs]))


def test_documents_are_mixed_nearly_as_by_a_full_shuffle() -> None:
    numbers = np.arange(STEPS * M)
    shuffled = np.array_split(np.random.default_rng(0).permutation(numbers), STEPS)
    in_order, buffered = same_document(np.array_split(numbers, STEPS)), same_document(whole_run(0)[:-SLOTS])
    assert in_order > 0.45
    # Two rows of a document meet if their ages are equal: less than 1 in `SLOTS` of the pairs that arrive together.
    assert buffered < in_order / SLOTS + same_document(shuffled)


@pytest.mark.parametrize("width", [1, 2, 5, 8])
def test_words_keep_every_value(width: int) -> None:
    rows = np.random.default_rng(0).integers(0, 1 << 16, (7, width), np.uint16).view(ml_dtypes.bfloat16)
    again = np.asarray(from_words(to_words(jnp.asarray(rows))))
    np.testing.assert_array_equal(again.view(np.uint16), rows.view(np.uint16))
