"""Which waiting prompts are read next, and where: rules of the plan, for any prompts and any free rows."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pod_job.extraction.packing import Queued
from pod_job.generation.admission import (
    MOST_CALLS,
    FeederShape,
    Outlook,
    Seat,
    Waiting,
    admit,
    longest_first,
    outlook,
    packed_prompts,
    positions_computed,
    should_prefill,
)
from pod_job.generation.decoding import FREE, PackedPrompts
from pod_job.models.position_blocks import BLOCK
from pod_job.prompts.prompt import Prompt
from pod_job.prompts.sources.sample import Sample


def waiting(lengths: list[int]) -> list[Waiting]:
    ids = [np.arange(1, length + 1, dtype=np.int32) for length in lengths]
    return [Waiting(Queued(1, i, Prompt(Sample(str(i), 0, x), x, False)), 10 + i) for i, x in enumerate(ids)]


@st.composite
def plans(draw: st.DrawFn) -> tuple[list[int], list[int], FeederShape]:
    shards, rows = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    shape = FeederShape(shards, rows, draw(st.integers(1, 4)), length=10)
    lengths = draw(st.lists(st.integers(1, 10), max_size=20))
    free = draw(st.lists(st.integers(0, shards * rows - 1), unique=True))
    return lengths, sorted(free), shape


@settings(max_examples=200, deadline=None)
@given(plans())
def test_every_seat_is_a_place_of_its_own_on_one_device(plan: tuple[list[int], list[int], FeederShape]) -> None:
    lengths, free, shape = plan
    items = waiting(lengths)
    seats = admit(items, free, shape)
    assert len({seat.row for seat in seats}) == len(seats)
    assert {seat.row for seat in seats} <= set(free)
    assert len({seat.waiting.number for seat in seats}) == len(seats)
    for seat in seats:
        assert seat.row // shape.rows == seat.shard
    arrays = dict(zip(PackedPrompts._fields, packed_prompts(seats, shape), strict=True))
    for shard in range(shape.shards):
        spans = sorted((s.start, s.start + s.waiting.length) for s in seats if s.shard == shard)
        assert len(spans) <= shape.prompts_per_row
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
        assert not spans or spans[-1][1] <= shape.length
    for item, row, slot, start, target in seats:
        length = item.length
        assert np.array_equal(arrays["token_ids"][row, start : start + length], item.queued.prompt.token_ids)
        assert np.array_equal(arrays["positions"][row, start : start + length], range(length))
        assert set(np.asarray(arrays["segment_ids"][row, start : start + length])) == {slot + 1}
        assert (arrays["last"][row, slot], arrays["target"][row, slot]) == (start + length - 1, target % shape.rows)
    assert (np.asarray(arrays["target"]) != FREE).sum() == len(seats)


@settings(max_examples=200, deadline=None)
@given(plans())
def test_the_first_prompt_never_waits_where_a_row_is_free(
    plan: tuple[list[int], list[int], FeederShape],
) -> None:
    lengths, free, shape = plan
    items = waiting(lengths)
    seats = admit(items, free, shape)
    if items and free:
        assert items[0].number in {seat.waiting.number for seat in seats}
    else:
        assert not seats


def test_the_longest_prompts_are_read_first_and_equal_ones_in_their_order() -> None:
    ordered = longest_first(waiting([3, 9, 1, 9, 4]))
    assert [(item.length, item.number) for item in ordered] == [(9, 11), (9, 13), (4, 14), (3, 10), (1, 12)]


def test_prefill_runs_where_it_reads_enough_or_nothing_else_can_be_done() -> None:
    quiet, busy = Outlook(0, 0, 3, beyond=True), Outlook(0.1, 0.1, 3, beyond=True)
    assert not should_prefill([quiet, quiet], MOST_CALLS)
    assert not should_prefill([busy, quiet], MOST_CALLS - 1)
    assert should_prefill([busy, quiet], MOST_CALLS)
    assert should_prefill([Outlook(1.0, 0.1, 3, beyond=True), quiet], 0)  # half of the positions, on the average
    assert not should_prefill([Outlook(0.9, 0.1, 3, beyond=True), quiet], 0)
    assert should_prefill([Outlook(0.1, 0.5, 3, beyond=True), quiet], 0)  # a quarter of the rows
    assert should_prefill([busy._replace(active=0), quiet._replace(active=0)], 0)
    assert should_prefill([busy._replace(beyond=False), quiet._replace(beyond=False)], 0)  # the last prompts there are
    assert not should_prefill([quiet._replace(active=0, beyond=False)], 0)


def test_prefill_that_computes_filled_positions_only_runs_for_one_prompt() -> None:
    shape = FeederShape(shards=2, rows=20, prompts_per_row=20, length=10 * BLOCK + 1, computes_filled=True)
    items = waiting([BLOCK - 1, BLOCK + 1, 5])
    one, two, all_of_them = (admit(items[:count], list(range(40)), shape) for count in (1, 2, 3))
    assert positions_computed([], shape) == 0
    assert [positions_computed(seats, shape) for seats in (one, two, all_of_them)] == [2 * BLOCK, 4 * BLOCK, 4 * BLOCK]
    assert should_prefill([outlook(two, 9, True, 30, shape)], 0)
    full = FeederShape(1, 20, 20, length=BLOCK + 1, computes_filled=True)
    assert positions_computed(admit(waiting([BLOCK + 1]), [0], full), full) == BLOCK + 1
    assert not should_prefill([outlook(two, 9, True, 30, replace(shape, computes_filled=False))], 0)


def test_prompts_go_to_the_device_with_the_most_free_rows() -> None:
    shape = FeederShape(shards=3, rows=2, prompts_per_row=4, length=10)
    seats = admit(waiting([4, 3, 2, 1]), [0, 2, 3, 4, 5], shape)
    assert [seat.row // shape.rows for seat in seats] == [1, 2, 1, 2]


@pytest.mark.parametrize(("more", "beyond"), [(True, True), (False, False)])
def test_an_outlook_counts_what_prefill_would_do(more: bool, beyond: bool) -> None:
    shape = FeederShape(shards=2, rows=4, prompts_per_row=2, length=10)
    items = waiting([4, 6])
    seats: list[Seat] = admit(items, list(range(8)), shape)
    assert outlook(seats, len(items), more, 5, shape) == Outlook(0.5, 0.25, 5, beyond)
    assert outlook(seats, len(items) + 1, more, 5, shape).beyond
