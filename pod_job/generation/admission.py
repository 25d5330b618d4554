"""Which waiting prompts are read next, and into which rows of the cache they go.

A prompt is packed with others into rows of the prefill program; which they are and when they are read changes neither
its tokens nor its vectors. Prefill costs the same however little it reads, so it waits until enough rows are free.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pod_job.extraction.packing import Queued
from pod_job.generation.decoding import FREE

ENOUGH_FILLED = 0.5
"""Prefill runs where prompts fill this share of the positions that it reads, on the average of all feeders,"""
ENOUGH_ROWS = 0.25
"""or take this share of the rows of the cache,"""
MOST_CALLS = 4
"""or have waited for free rows during so many calls of decode: the last long answers would begin late."""
BLOCK_ROWS = 4
"""Prompts for each row of the cache that are put in order at a time; their batches are in memory together."""


@dataclass(frozen=True)
class Waiting:
    """A prompt that is not read yet.

    Attributes:
        number: of its sample among all samples of the run.
        decided: new tokens of an earlier attempt at the same batch, which this one repeats.
    """

    queued: Queued
    number: int
    decided: Sequence[int] = ()

    @property
    def length(self) -> int:
        return len(self.queued.prompt.token_ids)


class Seat(NamedTuple):
    """Place of a waiting prompt: the `slot`-th of prefill row `packed_row`, from `start`; and `row` of the cache.

    Rows are those of the feeder.
    """

    waiting: Waiting
    packed_row: int
    slot: int
    start: int
    row: int


@dataclass(frozen=True)
class FeederShape:
    """Sizes of one feeder's part: on each of `shards` devices, `rows` of the cache and `packed_rows` of prefill."""

    shards: int
    rows: int
    packed_rows: int
    prompts_per_row: int
    seq_len: int


class Outlook(NamedTuple):
    """State of a feeder before it is decided what runs next.

    Attributes:
        filled: share of prefill's positions that the prompts which can be read now would fill.
        seated: share of the cache's rows that they would take.
        active: rows that generate.
        beyond: prompts are waiting that cannot be read now, or more may come.
    """

    filled: float
    seated: float
    active: int
    beyond: bool


def should_prefill(outlooks: Sequence[Outlook], calls: int) -> bool:
    """Returns whether prefill runs next, rather than decode, of which `calls` ran since the latest prefill."""
    filled, seated = (sum(values) / len(outlooks) for values in zip(*(o[:2] for o in outlooks), strict=True))
    if not seated:
        return False
    nothing_else = not any(outlook.active for outlook in outlooks) or not any(outlook.beyond for outlook in outlooks)
    return nothing_else or filled >= ENOUGH_FILLED or seated >= ENOUGH_ROWS or calls >= MOST_CALLS


def longest_first(block: Sequence[Waiting]) -> list[Waiting]:
    """Returns the prompts in the order in which they are read, so that no long answer is left to the end.

    How long an answer will be is not known, but where answers differ, as in ARC, long prompts have the long ones.
    """
    return sorted(block, key=lambda item: -item.length)


def admit(waiting: Sequence[Waiting], free: Sequence[int], shape: FeederShape) -> list[Seat]:
    """Returns seats for waiting prompts in their order.

    Each goes to the device that has the most free rows of the cache, so that all have as much to read in decode, and
    there into the fullest row of prefill that has room for it.

    Args:
        free: rows of the feeder's cache that have no prompt.
    """
    free_of_shard: list[list[int]] = [[] for _ in range(shape.shards)]
    for row in reversed(free):
        free_of_shard[row // shape.rows].append(row)
    used = [0] * (shape.shards * shape.packed_rows)
    seats: list[Seat] = []
    slots = [0] * len(used)
    for item in waiting:
        open_rows = [
            row
            for row in range(len(used))
            if free_of_shard[row // shape.packed_rows]
            and slots[row] < shape.prompts_per_row
            and used[row] + item.length <= shape.seq_len
        ]
        if open_rows:
            row = max(open_rows, key=lambda row: (len(free_of_shard[row // shape.packed_rows]), used[row]))
            seats.append(Seat(item, row, slots[row], used[row], free_of_shard[row // shape.packed_rows].pop()))
            used[row] += item.length
            slots[row] += 1
    return seats


def outlook(seats: Sequence[Seat], waiting: int, more: bool, active: int, shape: FeederShape) -> Outlook:
    """Returns the outlook of a feeder with `seats` for some of its `waiting` prompts, where `more` may come."""
    positions = shape.shards * shape.packed_rows * shape.seq_len
    filled = sum(seat.waiting.length for seat in seats) / positions
    seated = len(seats) / (shape.shards * shape.rows)
    return Outlook(filled, seated, active, more or waiting > len(seats))


def packed_prompts(seats: Sequence[Seat], shape: FeederShape) -> tuple[np.ndarray, ...]:
    """Returns the feeder's part of PackedPrompts: segments from 1, positions from 0; segment 0 where no prompt is."""
    rows, S, M = shape.shards * shape.packed_rows, shape.seq_len, shape.prompts_per_row
    token_ids, segment_ids, positions = (np.zeros((rows, S), np.int32) for _ in range(3))
    last, number = (np.zeros((rows, M), np.int32) for _ in range(2))
    target, forced = (np.full((rows, M), FREE, np.int32) for _ in range(2))
    for item, row, slot, start, target_row in seats:
        span, at = slice(start, start + item.length), (row, slot)
        token_ids[row, span] = item.queued.prompt.token_ids
        segment_ids[row, span] = slot + 1
        positions[row, span] = np.arange(item.length)
        last[at], number[at], target[at] = span.stop - 1, item.number, target_row % shape.rows
        forced[at] = item.decided[0] if item.decided else FREE
    return token_ids, segment_ids, positions, last, target, number, forced
