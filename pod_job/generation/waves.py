"""Prompts laid out for generation: one per row, aligned at their ends, with the tokens that are decided already.

R rows of a feeder, S positions of the longest prompt.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32

from pod_job.extraction.packing import Queued
from pod_job.generation.decoding import FREE


@dataclass(frozen=True)
class Wave:
    """Rows that are generated together; row i holds `queued[i]`, and rows past them are empty.

    `forced[i]` are the tokens of an earlier attempt at the same batch, which this one repeats.
    """

    token_ids: Int32[np.ndarray, "R S"]
    segment_ids: Int32[np.ndarray, "R S"]
    positions: Int32[np.ndarray, "R S"]
    numbers: Int32[np.ndarray, " R"]
    queued: tuple[Queued, ...]
    forced: tuple[Sequence[int], ...]

    def force(self, start: int, count: int) -> Int32[np.ndarray, "R count"]:
        """Returns new tokens [start, start + count) where they are decided, else FREE."""
        table = np.full((len(self.token_ids), count), FREE, np.int32)
        for row, tokens in enumerate(self.forced):
            part = tokens[start : start + count]
            table[row, : len(part)] = part
        return table


def make_waves(
    queued: Iterable[Queued],
    rows: int,
    seq_len: int,
    per_batch: int,
    decided: Mapping[tuple[int, int], Sequence[int]],
) -> Iterator[Wave]:
    """Yields waves of `rows` prompts in their order; `decided[batch, index]` are completions stored before."""
    items = iter(queued)
    while chosen := list(itertools.islice(items, rows)):
        yield make_wave(chosen, rows, seq_len, per_batch, decided)


def make_wave(
    chosen: Sequence[Queued],
    rows: int,
    seq_len: int,
    per_batch: int,
    decided: Mapping[tuple[int, int], Sequence[int]],
) -> Wave:
    """Returns one wave; padding before a prompt is segment 0, the prompt segment 1 with positions from 0."""
    token_ids, segment_ids, positions = (np.zeros((rows, seq_len), np.int32) for _ in range(3))
    numbers = np.zeros(rows, np.int32)
    for row, item in enumerate(chosen):
        length = len(item.prompt.token_ids)
        token_ids[row, seq_len - length :] = item.prompt.token_ids
        segment_ids[row, seq_len - length :] = 1
        positions[row, seq_len - length :] = np.arange(length)
        numbers[row] = (item.batch - 1) * per_batch + item.index
    forced = tuple(decided.get((item.batch, item.index), ()) for item in chosen)
    return Wave(token_ids, segment_ids, positions, numbers, tuple(chosen), forced)
