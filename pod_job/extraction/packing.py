"""Prompts packed into rows of one static length, and rows into steps, with the place of each prompt.

A packed prompt has its own segment id (from 1; 0 is padding) and positions from 0, so its activations are those of
the prompt alone.

R rows of a feeder's step, S positions of a row, M prompts of a row at most.
"""

import bisect
import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32

from pod_job.prompts.prompt import Prompt

# Rows' worth of prompts that are held back to choose from: the more, the fuller the rows.
CHOICE_ROWS = 64
# A row with a prompt which that many choices passed over is computed now, full or not: its batch is waiting for it.
PATIENCE_CHOICES = 4


@dataclass(frozen=True)
class Queued:
    """A prompt on its way: number `index` of batch `batch`."""

    batch: int
    index: int
    prompt: Prompt


@dataclass(frozen=True)
class Placed:
    """Place of a prompt in a step: tokens [start, start + length) of `row`, and the row's `slot`-th prompt."""

    batch: int
    index: int
    row: int
    slot: int
    start: int
    length: int


@dataclass(frozen=True)
class StepInput:
    """A feeder's input of one step.

    Attributes:
        chosen: the position of each slot's last token that has a row, by which one vector per prompt is selected.
        counted: 1 where a token has a row.
    """

    token_ids: Int32[np.ndarray, "R S"]
    segment_ids: Int32[np.ndarray, "R S"]
    positions: Int32[np.ndarray, "R S"]
    chosen: Int32[np.ndarray, "R M"]
    counted: Int32[np.ndarray, "R S"]
    placed: tuple[Placed, ...]

    @property
    def tokens(self) -> int:
        return sum(placed.length for placed in self.placed)


def pack(lengths: Sequence[int], seq_len: int, most: int) -> list[list[int]]:
    """Packs best-fit decreasing: lists of indices into `lengths`, each at most `seq_len` in sum and `most` long.

    The longest prompt comes first, into the fullest row that still has room for it (Johnson 1974: within 11/9 of
    the fewest rows).
    """
    rows: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (free positions, row), sorted; rows that take no more are not in it
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        at = bisect.bisect_left(rooms, (lengths[i], -1))
        free, row = rooms.pop(at) if at < len(rooms) else (seq_len, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(i)
        if free > lengths[i] and len(rows[row]) < most:
            bisect.insort(rooms, (free - lengths[i], row))
    return rows


def pack_evenly(lengths: Sequence[int], seq_len: int, most: int) -> list[list[int]]:
    """Packs as `pack`, for prompts so short that rows have `most` of them before they are full.

    `pack` would fill rows with the long ones and leave rows of short ones half empty. Here the longest comes first,
    into the emptiest of the fewest rows that can hold all, which spreads long and short ones (Graham 1969).
    """
    count = max(-(-sum(lengths) // seq_len), -(-len(lengths) // most))
    rows: list[list[int]] = [[] for _ in range(count)]
    filled = [(0, row) for row in range(count)]
    left = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if not filled or filled[0][0] + lengths[i] > seq_len:
            left.append(i)
            continue
        used, row = heapq.heappop(filled)
        rows[row].append(i)
        if len(rows[row]) < most:
            heapq.heappush(filled, (used + lengths[i], row))
    return rows + [[left[i] for i in row] for row in pack([lengths[i] for i in left], seq_len, most)]


def pack_steps(queued: Iterable[Queued], rows: int, seq_len: int, prompts_per_row: int) -> Iterator[StepInput]:
    """Yields steps of `rows` rows, each as full as the prompts at hand allow; only the last may have empty rows.

    Order is kept roughly, not exactly.
    """
    hold = max(2 * rows, CHOICE_ROWS)
    take = hold // 2 // rows * rows  # about half of what is held, in whole steps
    waiting: list[tuple[int, Queued]] = []  # with the choice before which each came
    tokens, choice = 0, 0

    def steps(chosen: list[list[Queued]]) -> Iterator[StepInput]:
        for start in range(0, len(chosen), rows):
            yield make_step(chosen[start : start + rows], rows, seq_len, prompts_per_row)

    for item in queued:
        waiting.append((choice, item))
        tokens += len(item.prompt.token_ids)
        if tokens >= hold * seq_len or len(waiting) >= hold * prompts_per_row:
            chosen, waiting = choose_rows(waiting, choice - PATIENCE_CHOICES, take, seq_len, prompts_per_row)
            tokens = sum(len(item.prompt.token_ids) for _, item in waiting)
            choice += 1
            yield from steps(chosen)
    chosen, _ = choose_rows(waiting, choice, len(waiting), seq_len, prompts_per_row)
    yield from steps(chosen)


def choose_rows(
    waiting: list[tuple[int, Queued]], stale_choice: int, count: int, seq_len: int, prompts_per_row: int
) -> tuple[list[list[Queued]], list[tuple[int, Queued]]]:
    """Returns the best `count` rows that can be made of the waiting prompts, and the prompts that go on waiting.

    Rows with a prompt that came by `stale_choice` go first, then the fullest.
    """
    lengths = [len(item.prompt.token_ids) for _, item in waiting]
    short = sum(lengths) * prompts_per_row < 4 * seq_len * len(lengths)
    packed = (pack_evenly if short else pack)(lengths, seq_len, prompts_per_row)

    def urgency(row: list[int]) -> tuple[bool, int]:
        stale = min(waiting[i][0] for i in row) <= stale_choice
        return (not stale, -sum(lengths[i] for i in row))

    chosen = sorted(packed, key=urgency)[:count]
    gone = {i for row in chosen for i in row}
    left = [entry for i, entry in enumerate(waiting) if i not in gone]
    # Within a row the oldest first, so that it reads in the order of the data.
    return [[waiting[i][1] for i in sorted(row)] for row in chosen], left


def make_step(chosen: Sequence[Sequence[Queued]], rows: int, seq_len: int, prompts_per_row: int) -> StepInput:
    """Returns the arrays of a step; rows past `chosen` are padding."""
    token_ids, segment_ids, positions, counted = (np.zeros((rows, seq_len), np.int32) for _ in range(4))
    selected = np.zeros((rows, prompts_per_row), np.int32)
    placed = []
    for row, items in enumerate(chosen):
        start = 0
        for slot, item in enumerate(items):
            length = len(item.prompt.token_ids)
            span = slice(start, start + length)
            token_ids[row, span] = item.prompt.token_ids
            segment_ids[row, span] = slot + 1
            positions[row, span] = np.arange(length)
            with_row = start + item.prompt.places
            counted[row, with_row] = 1
            selected[row, slot] = with_row.max(initial=0)
            placed.append(Placed(item.batch, item.index, row, slot, start, length))
            start += length
    return StepInput(token_ids, segment_ids, positions, selected, counted, tuple(placed))
