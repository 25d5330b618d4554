"""Which waiting prompts are read next, and into which rows of the cache they go.

A prompt is packed with others into a row of the prefill program; which they are and when they are read changes neither
its tokens nor its vectors. Where prefill costs the same however little it reads, it waits until enough rows are free.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pod_job.extraction.packing import Queued
from pod_job.generation.decoding import FREE
from pod_job.models.position_blocks import BLOCK

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
        behind: tokens at the prompt's beginning that are computed already, as the prefix of many.
    """

    queued: Queued
    number: int
    decided: Sequence[int] = ()
    behind: int = 0

    @property
    def length(self) -> int:
        return len(self.queued.prompt.token_ids)

    @property
    def own(self) -> int:
        """Tokens that are left to read."""
        return self.length - self.behind


class Seat(NamedTuple):
    """Place of a waiting prompt: the `slot`-th of the row that device `shard` reads, from `start`; `row` of the cache.

    Devices and rows are those of the feeder.
    """

    waiting: Waiting
    shard: int
    slot: int
    start: int
    row: int


@dataclass(frozen=True)
class FeederShape:
    """Sizes of one feeder's part: each of `shards` devices has `rows` of the cache, and one of prefill.

    Attributes:
        prompts_per_row: most prompts in the row of prefill.
        length: its positions.
        computes_filled: prefill computes those up to the last that holds a token; False: all of them.
    """

    shards: int
    rows: int
    prompts_per_row: int
    length: int
    computes_filled: bool = False


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
    among those to the one whose row of prefill is the fullest that has room for it.

    Args:
        free: rows of the feeder's cache that have no prompt.
    """
    free_of_shard: list[list[int]] = [[] for _ in range(shape.shards)]
    for row in reversed(free):
        free_of_shard[row // shape.rows].append(row)
    used, slots = [0] * shape.shards, [0] * shape.shards
    seats: list[Seat] = []
    for item in waiting:
        with_room = [
            shard
            for shard in range(shape.shards)
            if free_of_shard[shard] and slots[shard] < shape.prompts_per_row and used[shard] + item.own <= shape.length
        ]
        if with_room:
            shard = max(with_room, key=lambda shard: (len(free_of_shard[shard]), used[shard]))
            seats.append(Seat(item, shard, slots[shard], used[shard], free_of_shard[shard].pop()))
            used[shard] += item.own
            slots[shard] += 1
    return seats


def outlook(seats: Sequence[Seat], waiting: int, more: bool, active: int, shape: FeederShape) -> Outlook:
    """Returns the outlook of a feeder with `seats` for some of its `waiting` prompts, where `more` may come."""
    positions = positions_computed(seats, shape)
    filled = sum(seat.waiting.own for seat in seats) / positions if positions else 0.0
    seated = len(seats) / (shape.shards * shape.rows)
    return Outlook(filled, seated, active, more or waiting > len(seats))


def positions_computed(seats: Sequence[Seat], shape: FeederShape) -> int:
    """Returns the positions that prefill computes on the feeder's devices for these seats."""
    longest = shape.length
    if shape.computes_filled:
        ends = [seat.start + seat.waiting.own for seat in seats]
        longest = min(longest, -(-max(ends, default=0) // BLOCK) * BLOCK)
    return shape.shards * longest


def packed_prompts(seats: Sequence[Seat], shape: FeederShape) -> tuple[np.ndarray, ...]:
    """Returns the feeder's part of PackedPrompts: segments from 1, and 0 where no prompt is.

    Positions are from 0, or behind the prefix that a prompt shares.
    """
    rows, S, M = shape.shards, shape.length, shape.prompts_per_row
    token_ids, segment_ids, positions = (np.zeros((rows, S), np.int32) for _ in range(3))
    last, number, behind = (np.zeros((rows, M), np.int32) for _ in range(3))
    target, forced = (np.full((rows, M), FREE, np.int32) for _ in range(2))
    for item, row, slot, start, target_row in seats:
        span, at = slice(start, start + item.own), (row, slot)
        token_ids[row, span] = item.queued.prompt.token_ids[item.behind :]
        segment_ids[row, span] = slot + 1
        positions[row, span] = np.arange(item.behind, item.length)
        behind[at] = item.behind
        last[at], number[at], target[at] = span.stop - 1, item.number, target_row % shape.rows
        forced[at] = item.decided[0] if item.decided else FREE
    return token_ids, segment_ids, positions, last, target, number, forced, behind
