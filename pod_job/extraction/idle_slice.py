"""End of a run among slices: which blocks of others a slice takes over that has nothing to take.

Those that nobody computes any more, and those of a slice that is so slow that the others would wait for it.
"""

from typing import NamedTuple

from pod_job.run_folder.layout import committed
from pod_job.run_folder.leases import Blocks, Holders, Leases, block_name, first_block

SLOW = 3.0
"""A block counts as slow when none of its batches was committed for so many times as long as one takes here."""
LEAST_PATIENCE_S = 10.0
MOST_HOLDERS = 128
"""Blocks of which a slice reads the holders' statuses in one look."""
MOST_OVERDUE = 256
"""Blocks that a slice takes over in one round."""


class Overdue(NamedTuple):
    """A block that may be taken over, the take that it is at, and how many batches to take, from its end on."""

    block: int
    take: int
    most: int


class IdleSlice:
    """View of a slice that has nothing to take, of what the others have unfinished.

    It takes over what nobody computes, and blocks without progress; of a block that would take its holder long, though
    that makes progress, the later half, unless another slice has that already.
    """

    def __init__(self, blocks: Blocks, leases: Leases, holders: Holders) -> None:
        self.blocks, self.leases, self.holders = blocks, leases, holders
        self.looks = 0
        self.unchanged: dict[int, tuple[tuple[int, int], float]] = {}  # block -> its take and batches left, since when

    def look(self, batch_s: float | None) -> list[Overdue] | None:
        """Returns the blocks to take over now, and None where every batch is committed.

        Slices begin at different blocks, and each look reads the statuses of other holders where these are many.

        Args:
            batch_s: seconds that a batch takes here, where that is known.
        """
        done = committed(self.leases.folder)
        unfinished = self.blocks.unfinished(done)
        if not unfinished:
            return None
        self.leases.refresh()
        patience_s = self.holders.silence_s if batch_s is None else max(LEAST_PATIENCE_S, SLOW * batch_s)
        begin = first_block(self.leases.holder, len(unfinished))
        self.looks += 1
        asked = (begin + self.looks * MOST_HOLDERS) % len(unfinished)
        asked_about = {*[*unfinished[asked:], *unfinished[:asked]][:MOST_HOLDERS]}
        overdue = []
        for block in [*unfinished[begin:], *unfinished[:begin]]:
            left = sum(batch not in done for batch in self.blocks.batches(block))
            take = self.leases.takes.get(block_name(block), 0)
            if self._unchanged_s(block, (take, left)) > patience_s or (block in asked_about and self._is_left(block)):
                overdue.append(Overdue(block, take, left))
            elif take == 1 and batch_s is not None and left * batch_s > patience_s:
                overdue.append(Overdue(block, take, left // 2))
        return overdue[:MOST_OVERDUE]

    def _is_left(self, block: int) -> bool:
        """Returns whether nobody computes the block: nobody of this slice does, which is idle."""
        holder = self.leases.holder_of(block_name(block))
        own = self.leases.holder
        return (
            holder is None or (holder.slice, holder.attempt) == (own.slice, own.attempt) or self.holders.ended(holder)
        )

    def _unchanged_s(self, block: int, state: tuple[int, int]) -> float:
        """Returns for how long the block's take and the number of batches left have been as they are now."""
        now = self.holders.clock()
        if block not in self.unchanged or self.unchanged[block][0] != state:
            self.unchanged[block] = state, now
        return now - self.unchanged[block][1]
