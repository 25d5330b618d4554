"""Packing: every prompt once, nothing across a row's end, little padding, no batch kept waiting for ever."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pod_job.extraction.packing import CHOICE_ROWS, PATIENCE_CHOICES, Queued, StepInput, pack, pack_evenly, pack_steps
from pod_job.prompts.prompt import Prompt
from pod_job.prompts.sources.sample import Sample


def queue(lengths: list[int], per_batch: int = 16) -> list[Queued]:
    """Prompts whose tokens are all different, so that each can be found again."""
    starts = np.cumsum([0, *lengths])
    return [
        Queued(
            1 + i // per_batch,
            i % per_batch,
            Prompt(Sample(str(i), 0, ""), np.arange(a + 1, b + 1, dtype=np.int32), False),
        )
        for i, (a, b) in enumerate(itertools.pairwise(starts.tolist()))
    ]


@given(st.lists(st.integers(1, 32), max_size=200), st.integers(1, 5), st.integers(1, 6))
@settings(deadline=None, max_examples=60)
def test_every_prompt_is_placed_once_and_reads_back(lengths: list[int], rows: int, most: int) -> None:
    queued = queue(lengths)
    placed = {}
    for step in pack_steps(queued, rows, 32, most):
        assert step.token_ids.shape == (rows, 32)
        for p in step.placed:
            span = slice(p.start, p.start + p.length)
            placed[p.batch, p.index] = step.token_ids[p.row, span]
            assert (step.segment_ids[p.row, span] == p.slot + 1).all()
            assert (step.positions[p.row, span] == np.arange(p.length)).all()
            assert step.chosen[p.row, p.slot] == p.start + p.length - 1
            assert step.counted[p.row, span].all()
        assert step.tokens == (step.segment_ids > 0).sum() == (step.token_ids > 0).sum()
    assert len(placed) == len(queued)
    for item in queued:
        np.testing.assert_array_equal(placed[item.batch, item.index], item.prompt.token_ids)


@given(st.lists(st.integers(1, 100), max_size=300), st.integers(1, 20))
@settings(deadline=None)
def test_rows_keep_to_length_and_number(lengths: list[int], most: int) -> None:
    rows = pack(lengths, 100, most)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= 100 and len(row) <= most for row in rows)


def padding(steps: list[StepInput]) -> float:
    """Share of positions without a token, in rows that have any."""
    used = sum(int((step.segment_ids > 0).any(axis=1).sum()) for step in steps) * steps[0].token_ids.shape[1]
    return 1 - sum(step.tokens for step in steps) / used


@pytest.mark.parametrize("rows", [1, 8, 32])
def test_short_texts_leave_at_most_two_percent_padding(rows: int) -> None:
    lengths = np.clip(np.random.default_rng(0).lognormal(np.log(40), 0.6, 8000), 1, 1024).astype(int)
    assert padding(list(pack_steps(queue(lengths.tolist()), rows, 1024, 64))) <= 0.02


@pytest.mark.parametrize(
    ("median", "sigma", "seq_len"), [(480, 1.1, 1024), (40, 1.2, 2048)], ids=["web text", "far shorter than rows"]
)
def test_mixed_lengths_leave_at_most_two_percent_padding(median: int, sigma: float, seq_len: int) -> None:
    """Before the prompts run out; `prompts_per_row` is the default."""
    drawn = np.random.default_rng(0).lognormal(np.log(median), sigma, 300_000 // median)
    lengths = np.clip(drawn, 1, seq_len).astype(int)
    steps = list(pack_steps(queue(lengths.tolist()), 4, seq_len, 64))
    assert padding(steps[:-16]) <= 0.02
    assert padding(steps) <= 0.03


@given(st.lists(st.integers(1, 100), max_size=300), st.integers(1, 20))
@settings(deadline=None)
def test_rows_packed_evenly_keep_to_length_and_number(lengths: list[int], most: int) -> None:
    rows = pack_evenly(lengths, 100, most)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= 100 and len(row) <= most for row in rows)


def test_long_prompts_of_few_tasks_leave_at_most_two_percent_padding() -> None:
    lengths = np.clip(np.random.default_rng(0).lognormal(np.log(2500), 0.6, 400), 100, 8192).astype(int)
    assert padding(list(pack_steps(queue(lengths.tolist()), 4, 8192, 64))) <= 0.02


def test_no_prompt_waits_longer_than_the_patience() -> None:
    """One awkward prompt among many that fill rows alone is still computed in time."""
    lengths = [60, *[100] * 5000]
    steps = list(pack_steps(queue(lengths), 1, 100, 4))
    at = next(i for i, step in enumerate(steps) if any((p.batch, p.index) == (1, 0) for p in step.placed))
    assert at <= (PATIENCE_CHOICES + 2) * CHOICE_ROWS
