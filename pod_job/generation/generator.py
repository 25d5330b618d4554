"""Generation on one host: prompts through prefill into free rows, decode over all rows, completions out.

All hosts run the same programs in the same order; which runs next they decide together before each.
"""

import itertools
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array

from pod_job.config.schema import Positions
from pod_job.extraction.feeding import Feeding
from pod_job.extraction.packing import Queued
from pod_job.extraction.pipeline import STEPS_TIMED
from pod_job.extraction.transfer import local_rows, put_rows, start_copy
from pod_job.generation.admission import (
    BLOCK_ROWS,
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
from pod_job.generation.completions import Ending, completed_text, find_end
from pod_job.generation.decoding import FREE, Generated, PackedPrompts, Programs, Rows
from pod_job.models.cache import KeyValues
from pod_job.models.decoder import Params
from pod_job.prompts.prompt import Prompt
from pod_job.prompts.sources.sample import Sample
from pod_job.run_folder.completions import Completion

WAIT_S = 0.001
"""Seconds for which prompts are asked for, past which devices waited for them."""


def stored_range(positions: Positions, prompt_tokens: int, new_tokens: int) -> range:
    """Returns the positions of a sample that are stored."""
    match positions:
        case Positions.last:
            return range(prompt_tokens - 1, prompt_tokens + new_tokens - 1)
        case Positions.all:
            return range(prompt_tokens + new_tokens)
        case _:
            return range(prompt_tokens, prompt_tokens + new_tokens)


@dataclass
class Row:
    """A prompt in a row of the cache, with its new tokens and the vectors of it that have arrived from the devices.

    Attributes:
        tokens: new ones; the model has read all but the last.
        outputs: of programs, that hold vectors of it; `vectors` are those that have arrived, in their order.
        end: how many of the tokens make the completion, and why it ends there.
    """

    waiting: Waiting
    tokens: list[int]
    outputs: int = 0
    vectors: list[dict[str, np.ndarray]] = field(default_factory=list)
    end: tuple[int, str] | None = None

    @property
    def complete(self) -> bool:
        return self.end is not None and len(self.vectors) == self.outputs


@dataclass(frozen=True)
class SharedPrefix:
    """Tokens that prompts begin with, computed once.

    Attributes:
        keys: and values, one row of each device.
        vectors: of the tokens, with positions=all, {tap name: [tokens, width]}.
    """

    token_ids: np.ndarray
    keys: KeyValues
    vectors: dict[str, np.ndarray]

    def behind(self, prompt: np.ndarray) -> int:
        """Returns how many of a prompt's tokens need not be read: all of the prefix, or none."""
        count = len(self.token_ids)
        return count if len(prompt) > count and np.array_equal(prompt[:count], self.token_ids) else 0


class Arrival(NamedTuple):
    """Vectors on their way from the devices: those of each row are in `span` of row `at` of the output."""

    taps: dict[str, Array]
    parts: list[tuple[Row, int, slice]]


@dataclass(frozen=True)
class Result:
    """A prompt with its completion, and the vectors of its stored positions, {tap name: [positions, width]}."""

    queued: Queued
    completion: Completion
    vectors: dict[str, np.ndarray]


@dataclass
class Progress:
    """Progress of a run: runs of prefill, positions computed, and seconds of the latest runs.

    Attributes:
        positions: computed, and those that prompts have from the shared prefix.
        waited: runs of prefill before which prompts had to be waited for.
        prefill_s: of prefill.
        token_s: of decode, for one more token of every row.
    """

    prefills: int = 0
    waited: int = 0
    positions: int = 0
    prefill_s: deque[float] = field(default_factory=lambda: deque(maxlen=STEPS_TIMED))
    token_s: deque[float] = field(default_factory=lambda: deque(maxlen=STEPS_TIMED))


@dataclass(frozen=True)
class Generator:
    """Both programs, the weights they run on, this host's part in feeding them, and where completions end.

    Attributes:
        rows: this host's part of the cache's rows.
        prefill_rows: its part of the rows that prompts are packed into.
        prefix: tokens that many prompts begin with, computed; None where `programs` take none, or it is not read yet.
    """

    programs: Programs
    params: Params
    rows: Feeding
    prefill_rows: Feeding
    ending: Ending
    positions: Positions
    prefix: SharedPrefix | None = None

    @property
    def shape(self) -> FeederShape:
        """Sizes of this host's part."""
        shards = len(self.rows.row_starts)
        return FeederShape(
            shards=shards,
            rows=self.rows.feeder_rows // shards,
            prompts_per_row=self.programs.prompts_per_row,
            length=self.programs.prefill_length,
            computes_filled=self.programs.computes_filled,
        )

    def with_prefix(self, token_ids: np.ndarray) -> "Generator":
        """Reads tokens as the prefix of the prompts that begin with them, on all devices; all hosts call it at once."""
        programs, shape = self.programs, self.shape
        assert programs.no_prefix is not None
        assert programs.take_prefix is not None
        prompt = Prompt(Sample("prefix", 0, token_ids), token_ids)
        seats = [
            Seat(Waiting(Queued(0, 0, prompt), 0), shard, 0, 0, shard * shape.rows) for shard in range(shape.shards)
        ]
        packed = PackedPrompts(*put_rows(packed_prompts(seats, shape), self.prefill_rows))
        output = programs.prefill(self.params, programs.begin(), programs.no_prefix(), packed)
        vectors = {}
        if self.positions is Positions.all:
            vectors = {name: local_rows(array)[0][0, : len(token_ids)].copy() for name, array in output.taps.items()}
        return replace(self, prefix=SharedPrefix(token_ids, programs.take_prefix(output.rows), vectors))

    def run(self, prompts: Iterator[Waiting], progress: Progress) -> Iterator[Result]:
        """Yields the results of this host's prompts as they are finished, until all hosts' are."""
        return Run(self, prompts, progress).results()


class Run:
    """One run of a generator over some prompts."""

    def __init__(self, generator: Generator, prompts: Iterator[Waiting], progress: Progress) -> None:
        self.generator, self.shape, self.prompts, self.progress = generator, generator.shape, prompts, progress
        self.state: Rows = generator.programs.begin()
        self.decode_params = generator.programs.decode_params(generator.params)
        self.rows: list[Row | None] = [None] * (self.shape.shards * self.shape.rows)
        self.waiting: list[Waiting] = []
        self.more, self.waited = True, False
        self.calls = 0  # of decode, since the latest prefill
        self.arrivals: deque[Arrival] = deque()

    def results(self) -> Iterator[Result]:
        while True:
            self._take_prompts()
            free = [at for at, row in enumerate(self.rows) if row is None]
            seats = admit(self.waiting, free, self.shape)
            active = len(self.rows) - len(free)
            outlooks = everywhere(outlook(seats, len(self.waiting), self.more, active, self.shape))
            if should_prefill(outlooks, self.calls):
                self._prefill(seats)
                self.calls = 0
            elif any(other.active for other in outlooks):
                self._decode()
                self.calls += 1
            else:
                break
            yield from self._arrived(keep=1)
        yield from self._arrived(keep=0)

    def _take_prompts(self) -> None:
        enough, block = len(self.rows) + self.generator.programs.prompts_per_row, BLOCK_ROWS * len(self.rows)
        asked = time.monotonic()
        while self.more and len(self.waiting) < enough:
            taken = list(itertools.islice(self.prompts, block))
            self.more = len(taken) == block
            if (prefix := self.generator.prefix) is not None:
                taken = [replace(item, behind=prefix.behind(item.queued.prompt.token_ids)) for item in taken]
            self.waiting += longest_first(taken)
        self.waited |= time.monotonic() - asked > WAIT_S

    def _prefill(self, seats: Sequence[Seat]) -> None:
        generator, began = self.generator, time.monotonic()
        packed = put_rows(packed_prompts(seats, self.shape), generator.prefill_rows)
        prefix = generator.prefix
        keys = None if prefix is None else prefix.keys
        output = generator.programs.prefill(generator.params, self.state, keys, PackedPrompts(*packed))
        first = self._started(output)
        seated = {id(seat.waiting) for seat in seats}
        self.waiting = [item for item in self.waiting if id(item) not in seated]
        parts = []
        for seat in seats:
            row = Row(seat.waiting, [int(first[seat.shard, seat.slot])])
            self.rows[seat.row] = row
            if generator.positions is Positions.last:
                parts.append((row, seat.shard, slice(seat.slot, seat.slot + 1)))
            elif generator.positions is Positions.all:
                if prefix is not None and seat.waiting.behind:
                    row.vectors, row.outputs = [prefix.vectors], 1
                parts.append((row, seat.shard, slice(seat.start, seat.start + seat.waiting.own)))
        self._await(output, parts)
        self.progress.prefills += 1
        self.progress.waited += self.waited
        self.waited = False
        self.progress.positions += positions_computed(seats, self.shape) + sum(seat.waiting.behind for seat in seats)
        self.progress.prefill_s.append(time.monotonic() - began)

    def _decode(self) -> None:
        generator, began, T = self.generator, time.monotonic(), self.generator.programs.call_tokens
        forced = np.full((len(self.rows), T), FREE, np.int32)
        for at, row in enumerate(self.rows):
            if row is not None:
                decided = row.waiting.decided[len(row.tokens) : len(row.tokens) + T]
                forced[at, : len(decided)] = decided
        active = np.array([row is not None for row in self.rows])
        inputs = put_rows((forced, active), generator.rows)
        output = generator.programs.decode(self.decode_params, self.state, *inputs)
        tokens = self._started(output)
        parts = []
        for at, row in enumerate(self.rows):
            if row is not None:
                row.tokens += tokens[at].tolist()
                parts.append((row, at, slice(0, T)))
                # The last token chosen was not read yet, so no vector belongs to it.
                row.end = find_end(row.tokens[:-1], generator.ending)
                if row.end is not None:
                    self.rows[at] = None
        self._await(output, parts)
        self.progress.positions += len(self.rows) * T
        self.progress.token_s.append((time.monotonic() - began) / T)

    def _started(self, output: Generated) -> np.ndarray:
        """Keeps the state, lets the vectors come, and returns this host's new tokens."""
        self.state = output.rows
        start_copy((output.taps, output.tokens))
        return np.concatenate(local_rows(output.tokens))

    def _await(self, output: Generated, parts: list[tuple[Row, int, slice]]) -> None:
        for row, _, _ in parts:
            row.outputs += 1
        self.arrivals.append(Arrival(output.taps, parts))

    def _arrived(self, keep: int) -> Iterator[Result]:
        """Takes the vectors of all outputs but the latest `keep`, which come while the next program runs."""
        while len(self.arrivals) > keep:
            taps, parts = self.arrivals.popleft()
            arrays = {name: np.concatenate(local_rows(array)) for name, array in taps.items()} if parts else {}
            for row, at, span in parts:
                # A copy, or a few of its rows would keep the whole output in memory.
                row.vectors.append({name: array[at, span].copy() for name, array in arrays.items()})
                if row.complete:
                    yield self._result(row)

    def _result(self, row: Row) -> Result:
        assert row.end is not None
        count, reason = row.end
        prompt, tokens = row.waiting.queued.prompt, row.tokens[:count]
        length = len(stored_range(self.generator.positions, row.waiting.length, count))
        vectors = {name: np.concatenate([part[name] for part in row.vectors])[:length] for name in row.vectors[0]}
        completion = Completion(
            prompt.sample.task_id,
            prompt.sample.sample_idx,
            row.waiting.length,
            tokens,
            completed_text(tokens, self.generator.ending),
            reason,
        )
        return Result(row.waiting.queued, completion, vectors)


def everywhere(own: Outlook) -> list[Outlook]:
    """Returns the outlooks of all hosts."""
    if jax.process_count() == 1:
        return [own]
    gathered = multihost_utils.process_allgather(np.array(own, np.float32))
    return [
        Outlook(float(filled), float(seated), int(active), bool(beyond)) for filled, seated, active, beyond in gathered
    ]
