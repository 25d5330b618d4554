"""Batches of a host: assigned once, or taken by lease where several slices compute the run.

With leases every feeder takes blocks of batches by itself, in the thread that reads ahead, for as long as there are
free ones: nobody waits for anybody, and fast feeders take more. Hosts that feed the same rows follow what the first of
them has taken. Once nothing is free, the slice's hosts look together, in their main threads, at what is unfinished:
blocks of slices that have ended or are slow are taken over, one round after the other, until every batch is committed.
"""

import logging
import random
import secrets
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from itertools import islice
from typing import Protocol

import jax
import numpy as np

from pod_job.extraction.feeder import from_host_0, on_any_host
from pod_job.extraction.feeding import Feeding
from pod_job.extraction.idle_slice import MOST_OVERDUE, IdleSlice, Overdue
from pod_job.formats.records import Count, Record, encode, read_file
from pod_job.host.reporter import Reporter
from pod_job.host.stop_request import StopRequest
from pod_job.run_folder.layout import commit_file, trail_file
from pod_job.run_folder.leases import Blocks, Holders, Leases, block_name, first_block, next_block

POLL_S = 2.0
"""Between two looks of an idle slice at what others have unfinished."""
SLICES_PER_LOOK = 16
"""Slices of which, on average, one looks within POLL_S / 2: where there are more, each looks less often."""
LOOKING_SHARE = 4.0
"""Times as long as a look takes, at least, the pause after it is."""
FOLLOW_S = 0.2

log = logging.getLogger("pod_job")


class BatchSource(Protocol):
    """Batches of a host, in rounds: first those of `batches`, then again after each `more` that is true."""

    def batches(self) -> Iterable[int]: ...

    def more(self) -> bool: ...


@dataclass(frozen=True)
class Assigned:
    """Batches that were assigned to this host, in one round."""

    numbers: Sequence[int]

    def batches(self) -> Iterable[int]:
        return self.numbers

    def more(self) -> bool:
        return False


@dataclass(frozen=True)
class Reporting:
    """Reporter of a host, and its request to stop."""

    reporter: Reporter
    stop: StopRequest


class Taken(Record, frozen=True):
    """The batches that a feeder has taken next; none at the end of a round."""

    batches: list[Count]


class Choice(IntEnum):
    """Choice of an idle slice."""

    wait = 0
    take_over = 1
    end = 2


class LeasedBatches:
    """Batches that this host's feeder takes by lease.

    Args:
        pending: the batches that were not committed when the job began.
        leases: of this host.
        feeding: its part in the steps; hosts with one feeder take what the first of them has taken.
    """

    def __init__(
        self,
        blocks: Blocks,
        pending: Collection[int],
        leases: Leases,
        holders: Holders,
        feeding: Feeding,
        host: Reporting,
    ) -> None:
        self.blocks, self.pending, self.leases, self.feeding = blocks, frozenset(pending), leases, feeding
        self.folder, self.reporter, self.stop = leases.folder, host.reporter, host.stop
        self.idle = IdleSlice(blocks, leases, holders)
        self.overdue: list[Overdue] | None = None  # in the first round, free blocks are taken
        self.trail = None
        if feeding.feeders < jax.process_count():
            self.trail = Trail(host, f"{agreed_number():08x}_feeder_{feeding.feeder:03d}")

    def batches(self) -> Iterator[int]:
        """Yields the batches of a round as they are taken; for the thread that reads ahead."""
        if self.trail is not None and not self.feeding.writes:
            yield from self.trail.follow()
            return
        taken = self._take_free() if self.overdue is None else self._take_over(self.overdue)
        for batch in taken:
            self.reporter.add(batches_total=1)
            if self.trail is not None:
                self.trail.leave([batch])
            yield batch
        if self.trail is not None:
            self.trail.leave([])

    def more(self) -> bool:
        """Returns once this slice has blocks to take over, and so another round; False at the end, on all its hosts."""
        while not on_any_host([bool(self.stop)])[0]:
            choice, pause_s, self.overdue = self._agreed()
            if choice is not Choice.wait:
                return choice is Choice.take_over
            time.sleep(pause_s)
        return False

    def _agreed(self) -> tuple[Choice, float, list[Overdue]]:
        """Returns the choice of host 0, on every host, and the seconds until the next look."""
        table = np.full((1 + MOST_OVERDUE, 3), -1, np.int32)
        if jax.process_index() == 0:
            began, status = time.monotonic(), self.reporter.status
            overdue = self.idle.look(status.seconds / status.batches if status.batches else None)
            choice = Choice.end if overdue is None else Choice.take_over if overdue else Choice.wait
            pause_s = look_pause_s(self.leases.slices, time.monotonic() - began)
            table[0] = choice, round(1000 * pause_s), 0
            for row, one in enumerate(overdue or [], 1):
                table[row] = one
        (choice, pause_ms, _), *rows = from_host_0(table).tolist()
        return Choice(choice), pause_ms / 1000, [Overdue(*row) for row in rows if row[0] >= 0]

    def _take_free(self) -> Iterator[int]:
        start, last = first_block(self.leases.holder, self.blocks.count), None
        free = self._free()
        while not self.stop and (block := next_block(free, last, start)) is not None:
            if self.leases.take(block_name(block), 1):
                free.remove(block)
                last = block
                yield from self._not_committed(self.blocks.batches(block))
            else:
                free = self._free() - {block}

    def _free(self) -> set[int]:
        self.leases.refresh()
        return {block for block in self.unfinished if block_name(block) not in self.leases.takes}

    @cached_property
    def unfinished(self) -> frozenset[int]:
        """Blocks that were not done when the job began."""
        return frozenset(map(self.blocks.block_of, self.pending))

    def _not_committed(self, batches: Iterable[int]) -> Iterator[int]:
        """Yields the batches that are not committed by then: a slice that is slow has been helped meanwhile."""
        for batch in batches:
            if batch in self.pending and self.folder.stat(commit_file(batch)) is None:
                yield batch

    def _take_over(self, overdue: Sequence[Overdue]) -> Iterator[int]:
        """Takes over blocks; their batches come from the last one on, as whoever is slow comes from the first one.

        Feeders begin at different blocks, and end the round where another was first: who is idle at the same time does
        not ask for one block after the other in vain.
        """
        if self.feeding.feeder >= len(overdue):
            return
        begin = first_block(self.leases.holder, len(overdue))
        begin = (begin + self.feeding.feeder * len(overdue) // self.feeding.feeders) % len(overdue)
        for one in [*overdue[begin:], *overdue[:begin]]:
            if self.stop or not self.leases.take(block_name(one.block), one.take + 1):
                return
            log.info("took over block %d, take %d", one.block, one.take + 1)
            yield from islice(self._not_committed(reversed(self.blocks.batches(one.block))), one.most)


def look_pause_s(slices: int, look_s: float) -> float:
    """Returns the seconds from one look of an idle slice, which took `look_s`, to the next, at random."""
    return random.uniform(0.5, 1.5) * max(POLL_S, POLL_S * slices / SLICES_PER_LOOK, LOOKING_SHARE * look_s)


class Trail:
    """Batches that a feeder has taken, for all its hosts: small objects, one after the other, in the slice's folder."""

    def __init__(self, host: Reporting, name: str) -> None:
        self.folder, self.stop, self.name = host.reporter.folder, host.stop, name
        self.length = 0

    def leave(self, batches: list[int]) -> None:
        """Adds the batches that come next; none at the end of a round."""
        self.length += 1
        self.folder.create(trail_file(self.name, self.length), [encode(Taken(batches))])

    def follow(self) -> Iterator[int]:
        """Yields the batches of a round as the first host of the feeder takes them."""
        while not self.stop:
            try:
                batches = read_file(self.folder, trail_file(self.name, self.length + 1), Taken).batches
            except FileNotFoundError:
                time.sleep(FOLLOW_S)
                continue
            self.length += 1
            if not batches:
                return
            yield from batches


def agreed_number() -> int:
    """Returns a number that no earlier start has had, the same on all hosts of the slice."""
    return int(from_host_0(np.array([secrets.randbits(31)], np.int32))[0])
