"""Leases of a run that several slices compute: who computes which block of batches, or merges.

A lease is a small object that is created once and never changed: `leases/block_000007_take_02.json` is the second take
of block 7. Whoever creates it has the block; of two takers one finds the name taken. No time is written into it, so no
two clocks are compared: a lease ends when its holder does. The holder's own status is its heartbeat, however many
leases it has; it has ended where the status says so or is that of a later start, or where it has not changed for a
while by the clock of whoever looks. A lease that is taken over too early costs a batch computed twice and nothing else:
commits are create-only.
"""

import re
import time
import zlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from itertools import groupby
from typing import Annotated

import msgspec

from pod_job.formats.records import Count, DamagedRecord, Record, encode, read_file
from pod_job.run_folder.layout import BLOCKS, LEASES, MAX_BATCHES, lease_file
from pod_job.run_folder.slices import report_folder
from pod_job.run_folder.status import MOST_HOSTS, read_status
from pod_job.storage.folder import Folder, NameTaken

MERGE = "merge"
"""Name of the work that follows all batches."""
BLOCKS_PER_FEEDER = 32
"""Blocks of each feeder: while the last ones are computed, the others wait for at most so much of the run."""
MOST_PER_BLOCK = 256
LEASE = re.compile(re.escape(LEASES) + r"(block_\d{6,}|merge)_take_(\d{2,})\.json")


class Holder(Record, frozen=True):
    """A host of one start of a slice."""

    slice: str
    host: Annotated[int, msgspec.Meta(ge=0, lt=MOST_HOSTS)]
    attempt: str


class BlocksRecord(Record, frozen=True):
    """leases/blocks.json: how the batches of the run are cut into blocks, the same for all slices."""

    batches: Annotated[int, msgspec.Meta(ge=0, le=MAX_BATCHES)]
    per_block: Annotated[int, msgspec.Meta(ge=1, le=MAX_BATCHES)]


class LeaseRecord(Record, frozen=True):
    """leases/block_000007_take_02.json. `take`: from 1; who takes over what another has taken adds one."""

    work: str
    take: Count
    holder: Holder


@dataclass(frozen=True)
class Blocks:
    """Consecutive batches of a run, in blocks numbered from 0; the last may be short."""

    total: int
    per_block: int

    @property
    def count(self) -> int:
        return -(-self.total // self.per_block)

    def block_of(self, batch: int) -> int:
        return (batch - 1) // self.per_block

    def batches(self, block: int) -> range:
        """Returns the numbers (from 1) of a block's batches."""
        start = 1 + block * self.per_block
        return range(start, min(start + self.per_block, self.total + 1))

    def unfinished(self, done: Collection[int]) -> list[int]:
        """Returns the blocks that have a batch which is not in `done`."""
        pending = (batch for batch in range(1, self.total + 1) if batch not in done)
        return [block for block, _ in groupby(pending, self.block_of)]


def per_block(batches: int, feeders: int) -> int:
    """Returns how many batches a block has, for a run with so many feeders in all its slices."""
    return max(1, min(MOST_PER_BLOCK, batches // (BLOCKS_PER_FEEDER * feeders)))


def agreed_blocks(folder: Folder, wanted: Blocks) -> Blocks:
    """Returns the blocks of the run: those wanted here, or of whoever was first."""
    record = BlocksRecord(wanted.total, wanted.per_block)
    try:
        folder.create(BLOCKS, [encode(record)])
    except NameTaken:
        record = read_file(folder, BLOCKS, BlocksRecord)
    return Blocks(wanted.total, record.per_block)


def block_name(block: int) -> str:
    return f"block_{block:06d}"


class Leases:
    """Leases of a run as one holder sees them.

    Attributes:
        slices: how many slices compute the run, as far as is known.
        takes: the latest take of each work, as of `refresh`.
    """

    def __init__(self, folder: Folder, holder: Holder, slices: int = 1) -> None:
        self.folder, self.holder, self.slices = folder, holder, slices
        self.takes: dict[str, int] = {}
        self._holders: dict[tuple[str, int], Holder] = {}

    def refresh(self) -> None:
        """Lists the leases there are now."""
        takes: dict[str, int] = {}
        for name in self.folder.names(LEASES):
            if lease := LEASE.fullmatch(name):
                takes[lease[1]] = max(int(lease[2]), takes.get(lease[1], 0))
        self.takes = takes

    def take(self, work: str, take: int) -> bool:
        """Takes some work for this holder; returns False where another was first."""
        lease = LeaseRecord(work, take, self.holder)
        try:
            self.folder.create(lease_file(work, take), [encode(lease)])
        except NameTaken:
            return False
        self.takes[work] = take
        self._holders[work, take] = self.holder
        return True

    def holder_of(self, work: str) -> Holder | None:
        """Returns who has taken the work last; None where nobody has, or the lease is damaged."""
        if work not in self.takes:
            return None
        key = work, self.takes[work]
        if key not in self._holders:
            try:
                self._holders[key] = read_file(self.folder, lease_file(*key), LeaseRecord).holder
            except (FileNotFoundError, DamagedRecord):
                return None
        return self._holders[key]


def first_block(holder: Holder, count: int) -> int:
    """Returns where a holder begins: anywhere, so that takers who begin together do not meet."""
    return zlib.crc32(f"{holder.slice}/{holder.host}".encode()) % max(1, count)


def next_block(free: Collection[int], after: int | None, start: int) -> int | None:
    """Returns which of the blocks in `free` to take next; None where there is none.

    The one after the last that was taken, `after`, since tasks are read in order; else, as others have come to take
    from there, the middle of the longest run of free blocks. The first is the one at `start`, or behind it.
    """
    if not free:
        return None
    if after is None:
        return min(free, key=lambda block: (block < start, block))
    if after + 1 in free:
        return after + 1
    runs = [list(run) for _, run in groupby(enumerate(sorted(free)), lambda pair: pair[1] - pair[0])]
    longest = max(runs, key=len)
    return longest[len(longest) // 2][1]


class Holders:
    """Sees whether holders have ended, by their statuses and this machine's clock alone."""

    def __init__(self, folder: Folder, silence_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """`silence_s`: for how long a status may stay as it is before its host counts as ended."""
        self.folder, self.silence_s, self.clock = folder, silence_s, clock
        self._reports: dict[str, Folder] = {}
        self._seen: dict[Holder, tuple[float, float]] = {}  # when its status was written, and when that was first seen

    def ended(self, holder: Holder) -> bool:
        """Returns whether the holder computes nothing any more."""
        reports = self._reports.setdefault(holder.slice, report_folder(self.folder, holder.slice))
        status = read_status(reports, holder.host)
        if status is not None and (status.attempt != holder.attempt or status.phase.ended):
            return True
        updated, now = 0.0 if status is None else status.updated, self.clock()
        seen = self._seen.get(holder)
        if seen is None or seen[0] != updated:
            self._seen[holder] = updated, now
            return False
        return now - seen[1] > self.silence_s
