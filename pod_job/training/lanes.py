"""Prompts for training as rows of tokens, in an order that depends on the data and the number of rows of a step only.

Each row of a step has a lane of its own: lane l of L reads batches l + 1, l + 1 + L, ... of the run, over and over, and
packs each of them by itself. So any mesh and any hosts that have L rows in a step compute the same steps, and a start
goes on at any step by the batch and row that each lane had come to.

R lanes of this host's feeder, S positions of a row.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int32

from pod_job.extraction.packing import Queued, StepInput, choose_rows, make_step
from pod_job.extraction.read_ahead import read_ahead
from pod_job.host.stop_request import StopRequest
from pod_job.planning.batches import total_batches
from pod_job.planning.inputs import Inputs

Row = list[Queued]
"""Prompts that share a row."""


@dataclass(frozen=True)
class LaneStep:
    """Input of a step with the positions [R, 2] at which each lane goes on: its round, and the row in that batch."""

    input: StepInput
    positions: Int32[np.ndarray, "R 2"]


class Lanes:
    """Lanes of this host's feeder, and the rows that wait in each of them."""

    def __init__(
        self, inputs: Inputs, lanes: Sequence[int], count: int, positions: Int32[np.ndarray, "R 2"], stop: StopRequest
    ) -> None:
        """`lanes` are some of `count` in all, `positions` those of the step before; zeros at the start."""
        inputs = in_small_batches(inputs, count)
        self.lanes, self.count, self.extract = lanes, count, inputs.config.extract
        self.rounds, self.rows = ({lane: int(positions[i, j]) for i, lane in enumerate(lanes)} for j in (0, 1))
        self._waiting: dict[int, deque[Row]] = {lane: deque() for lane in lanes}
        self._skipped = dict(self.rows)
        self._owners = (ticket % count for ticket in lane_tickets(dict(self.rounds), count))
        batches = (ticket % inputs.total_batches + 1 for ticket in lane_tickets(dict(self.rounds), count))
        self._arriving = read_ahead(inputs, batches, stop)

    def steps(self) -> Iterator[LaneStep]:
        """Yields steps without end, until there is a request to stop."""
        while True:
            taken = [self._take(lane) for lane in self.lanes]
            if None in taken:
                return
            rows = [row for row in taken if row is not None]
            step = make_step(rows, len(rows), self.extract.seq_len, self.extract.prompts_per_row)
            yield LaneStep(step, np.array([(self.rounds[lane], self.rows[lane]) for lane in self.lanes], np.int32))

    def _take(self, lane: int) -> Row | None:
        """Returns the lane's next row; None after a request to stop."""
        waiting = self._waiting[lane]
        while True:
            while not waiting:
                if not self._receive():
                    return None
            if row := waiting.popleft():
                self.rows[lane] += 1
                return row
            self.rounds[lane], self.rows[lane] = self.rounds[lane] + 1, 0

    def _receive(self) -> bool:
        """Packs the next batch into its lane, with an empty row as its end; returns False after a request to stop."""
        arrived = next(self._arriving, None)
        if arrived is None:
            return False
        number, tokenized = arrived
        prompts = [(0, Queued(number, i, prompt)) for i, prompt in enumerate(tokenized.prompts)]
        packed, _ = choose_rows(prompts, -1, len(prompts), self.extract.seq_len, self.extract.prompts_per_row)
        lane = next(self._owners)
        self._waiting[lane].extend([*packed[self._skipped.pop(lane, 0) :], []])
        return True


def in_small_batches(inputs: Inputs, lanes: int) -> Inputs:
    """Returns the inputs cut into batches of which every lane has one at least, where there are so many samples."""
    config, samples = inputs.config, len(inputs.tasks.samples)
    size = max(1, min(config.extract.save_every_n_samples, samples // lanes))
    extract = replace(config.extract, save_every_n_samples=size)
    return replace(inputs, config=replace(config, extract=extract), total_batches=total_batches(samples, size))


def lane_tickets(rounds: dict[int, int], count: int) -> Iterator[int]:
    """Yields the numbers, from 0, of the batches that lanes read, in the order in which they are needed.

    Args:
        rounds: of each lane, the first round that it reads a batch in; in round r lane l reads batch r * count + l.
    """
    turn = min(rounds.values())
    while True:
        yield from (turn * count + lane for lane, first in rounds.items() if first <= turn)
        turn += 1
