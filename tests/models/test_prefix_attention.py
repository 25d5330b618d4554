"""Attention to keys before a row: every implementation is that of sequences which lie in the row whole."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pod_job.models import attention, attention_blocks
from pod_job.models.attention_settings import AttentionSettings, Before, Heads

SHARED, SLOTS = 150, 256
"""Tokens before the row, in the last of so many slots."""
ROW, SEGMENTS, BEHIND = 256, (100, 60, 90), (SHARED, 0, SHARED)
"""Sequences of the row, and how many of the tokens before it each of them begins with."""
HEADS, KV_HEADS = 4, 2


def drawn(head_dim: int, tokens: int) -> list[np.ndarray]:
    rng = np.random.default_rng(tokens)
    return [rng.normal(size=(1, tokens, n, head_dim)).astype(np.float32) for n in (HEADS, KV_HEADS, KV_HEADS)]


def inputs(head_dim: int, sinks: bool) -> tuple[Heads, jax.Array]:
    _, *shared = drawn(head_dim, SHARED)
    # What lies in the slots before is of no sequence.
    slots = [np.full((1, SLOTS, KV_HEADS, head_dim), 7, np.float32) for _ in shared]
    for of_slots, of_tokens in zip(slots, shared, strict=True):
        of_slots[:, SLOTS - SHARED :] = of_tokens
    padding = ROW - sum(SEGMENTS)
    behind = np.repeat([*BEHIND, 0], [*SEGMENTS, padding])[None]
    k, v = (jnp.asarray(x.transpose(0, 2, 3, 1)) for x in slots)
    own = (jnp.asarray(x) for x in drawn(head_dim, ROW))
    of_sinks = jnp.arange(HEADS, dtype=jnp.float32) if sinks else None
    heads = Heads(*own, of_sinks, Before(k, v, jnp.asarray(behind)))
    return heads, jnp.asarray(np.repeat([1, 2, 3, 0], [*SEGMENTS, padding])[None])


def of_whole_sequences(heads: Heads, head_dim: int, settings: AttentionSettings) -> list[np.ndarray]:
    """Outputs at the own positions of each sequence, which is computed alone and whole."""
    shared, outputs, start = drawn(head_dim, SHARED), [], 0
    for length, behind in zip(SEGMENTS, BEHIND, strict=True):
        own = [x[:, start : start + length] for x in heads[:3]]
        whole = [jnp.concatenate([x[:, SHARED - behind :], y], axis=1) for x, y in zip(shared, own, strict=True)]
        one_segment = jnp.ones((1, behind + length), jnp.int32)
        outputs.append(attention.attend_xla(Heads(*whole, heads.sinks), one_segment, settings)[:, behind:])
        start += length
    return [np.asarray(output) for output in outputs]


IMPLEMENTATIONS: dict[str, Any] = {
    "xla": attention.attend_xla,
    "blocks of a CPU": attention_blocks.attend_blocks,
    "kernel of a TPU": functools.partial(attention.attend_splash, interpret=True),
    "kernel of a GPU": functools.partial(attention.attend_cudnn, implementation="xla"),
}


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize(("head_dim", "softcap", "sinks"), [(64, None, False), (128, 5.0, True)])
def test_sequences_with_tokens_before_the_row_are_as_if_they_were_in_it(
    name: str, head_dim: int, softcap: float | None, sinks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sequences that begin with those tokens and one that does not, over several blocks of queries and keys."""
    monkeypatch.setattr(attention, "LARGEST_KERNEL_BLOCK", 128)
    if "GPU" in name:  # whose kernel takes neither
        softcap, sinks = None, False
    settings = AttentionSettings(head_dim**-0.5, softcap, heads_apart=head_dim == 128)
    heads, segment_ids = inputs(head_dim, sinks)
    found = np.asarray(jax.jit(functools.partial(IMPLEMENTATIONS[name], settings=settings))(heads, segment_ids))
    start = 0
    for length, expected in zip(SEGMENTS, of_whole_sequences(heads, head_dim, settings), strict=True):
        np.testing.assert_allclose(found[:, start : start + length], expected, rtol=2e-5, atol=2e-5)
        start += length


def test_blocks_of_queries_may_be_shorter_than_those_of_the_keys_before_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_blocks, "QUERIES", 100)
    monkeypatch.setattr(attention_blocks, "KEYS", 100)
    heads, segment_ids = inputs(16, False)
    settings = AttentionSettings(0.25)
    found = attention_blocks.attend_blocks(heads, segment_ids, settings)
    np.testing.assert_allclose(found[:, :250], attention.attend_xla(heads, segment_ids, settings)[:, :250], atol=2e-5)
