"""Operations of leases per second with many slices, on simulated time: `python -m tools.lease_rate`; a minute.

Feeders take blocks as the job's do, by the same code, from a folder in memory that counts what a bucket would be asked:
creates, and pages of 1000 names for each list; the table has the most in a second of each kind. What all feeders know
alike is in memory once: 64 slices of 16 feeders and 20,000 batches take 2 GB. Slices start within a
minute, batches take a time of their own each, and one slice in three is lost when half of the run is done; what it held
is taken over at the end.
"""

import argparse
import heapq
import os
import random
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import jax
from jax.sharding import NamedSharding, PartitionSpec

from pod_job.extraction.batch_source import LeasedBatches, Reporting, look_pause_s
from pod_job.extraction.feeding import Feeding, StepRows
from pod_job.extraction.idle_slice import IdleSlice
from pod_job.formats.records import encode
from pod_job.host.rendezvous import Host
from pod_job.host.reporter import Reporter
from pod_job.host.stop_request import StopRequest
from pod_job.run_folder.layout import LEASES, commit_file, lease_file
from pod_job.run_folder.leases import LEASE, Blocks, Holder, Holders, LeaseRecord, Leases, per_block
from pod_job.storage.checksums import Part, Stored, checksum
from pod_job.storage.folder import Folder, NameTaken

PAGE = 1000
REQUEST_S = 0.03  # of the bucket
START_S = 60.0
SPREAD = 0.2  # of the time that a batch takes


class CountingFolder:
    """Objects in memory, and the number of requests by kind and second of the simulated time."""

    def __init__(self) -> None:
        self.url = "memory"
        self.now, self.count = 0.0, 0
        self.objects: dict[str, bytes] = {}
        self.folders: defaultdict[str, list[str]] = defaultdict(list)
        self.takes: dict[str, int] = {}
        self.requests: dict[str, Counter[int]] = {"creates": Counter(), "lists": Counter(), "reads": Counter()}

    def create(self, name: str, parts: Sequence[Part]) -> Stored:
        data = b"".join(map(bytes, parts))
        self._count("creates")
        if name in self.objects and self.objects[name] != data:
            raise NameTaken(name, checksum([self.objects[name]]))
        self._store(name, data)
        if lease := LEASE.fullmatch(name):
            self.takes[lease[1]] = max(int(lease[2]), self.takes.get(lease[1], 0))
        return checksum([data])

    def names(self, prefix: str) -> list[str]:
        assert prefix.endswith("/")
        names = self.folders[prefix]
        self._count("lists", 1 + len(names) // PAGE)
        return list(names)

    def read(self, name: str, start: int = 0, size: int | None = None) -> bytes:
        self._count("reads")
        return self.objects[name]

    def stat(self, name: str) -> Stored | None:
        self._count("reads")
        return checksum([self.objects[name]]) if name in self.objects else None

    def commit(self, batch: int) -> None:
        """Adds a commit record, which is no operation of leases."""
        self._store(commit_file(batch), b"")

    def _store(self, name: str, data: bytes) -> None:
        if name not in self.objects:
            self.folders[name[: name.rindex("/") + 1]].append(name)
        self.objects[name] = data

    def _count(self, kind: str, requests: int = 1) -> None:
        self.requests[kind][int(self.now)] += requests
        self.count += requests


@dataclass(frozen=True)
class Fleet:
    """Sizes of a simulated run; `batch_s`: seconds that a feeder computes a batch."""

    slices: int
    feeders: int
    batches: int
    batch_s: float


class Simulation:
    """Slices that take and commit batches until none is left."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet, self.folder, self.random = fleet, CountingFolder(), random.Random(0)
        self.blocks = Blocks(fleet.batches, per_block(fleet.batches, fleet.slices * fleet.feeders))
        self.pending = frozenset(range(1, fleet.batches + 1))
        self.unfinished = frozenset(range(self.blocks.count))
        self.done: set[int] = set()
        self.twice = 0
        self.lost: set[int] = set()
        self.idle: dict[int, tuple[IdleSlice, list[LeasedBatches]]] = {}
        self.working: Counter[int] = Counter()
        self.events: list[tuple[float, int, int, object]] = []
        rows = StepRows(1, NamedSharding(jax.make_mesh((1,), ("data",), devices=jax.devices()[:1]), PartitionSpec()))
        for number in range(fleet.slices):
            sources = [self._source(number, feeder, rows) for feeder in range(fleet.feeders)]
            self.idle[number] = sources[0].idle, sources
            self._begin_round(number, self.random.uniform(0, START_S))

    def run(self) -> float:
        """Returns the seconds until every batch is committed."""
        while self.events:
            self.folder.now, _, number, event = heapq.heappop(self.events)
            if len(self.done) * 2 > self.fleet.batches and not self.lost:
                self.lost = set(range(0, self.fleet.slices, 3))
            if number in self.lost:
                continue
            if event is None:
                self._look(number)
            else:
                self._next_batch(number, *cast("tuple[Iterator[int], int | None]", event))
        return self.folder.now

    def _next_batch(self, number: int, stream: Iterator[int], computed: int | None) -> None:
        if computed is not None:
            self.twice += computed in self.done
            self.done.add(computed)
            self.folder.commit(computed)
        batch = next(stream, None)
        if batch is not None:
            seconds = self.fleet.batch_s * self.random.uniform(1 - SPREAD, 1 + SPREAD)
            return self._at(self.folder.now + seconds, number, (stream, batch))
        self.working[number] -= 1
        if not self.working[number]:
            self._at(self.folder.now, number, None)

    def _look(self, number: int) -> None:
        """Has an idle slice look, which takes REQUEST_S for each request."""
        idle, sources = self.idle[number]
        before = self.folder.count
        overdue = idle.look(self.fleet.batch_s)
        if overdue:
            for source in sources:
                source.overdue = overdue
            self._begin_round(number, self.folder.now)
        elif overdue is not None:
            look_s = REQUEST_S * (self.folder.count - before)
            self._at(self.folder.now + look_s + look_pause_s(self.fleet.slices, look_s), number, None)

    def _begin_round(self, number: int, at: float) -> None:
        for source in self.idle[number][1]:
            self.working[number] += 1
            self._at(at, number, (iter(source.batches()), None))

    def _at(self, when: float, number: int, event: object) -> None:
        heapq.heappush(self.events, (when, self.random.getrandbits(48), number, event))

    def _source(self, number: int, feeder: int, rows: StepRows) -> LeasedBatches:
        folder = cast(Folder, self.folder)
        leases = SimulatedLeases(folder, Holder(str(number), feeder, "first"), self.fleet.slices)
        holders = SimulatedHolders(self, folder)
        reporter = Reporter(folder, Host(feeder, self.fleet.feeders, "first", None, slice=str(number)))
        feeding = Feeding(rows, feeder, self.fleet.feeders, True, (feeder,))
        source = LeasedBatches(self.blocks, self.pending, leases, holders, feeding, Reporting(reporter, StopRequest()))
        source.pending, source.unfinished = self.pending, self.unfinished  # of which there is one for all feeders
        return source


class SimulatedLeases(Leases):
    """Leases of a holder, which knows what was taken until its last look from what all of them share."""

    def refresh(self) -> None:
        self.folder.names(LEASES)
        self.takes = cast(CountingFolder, self.folder).takes

    def take(self, work: str, take: int) -> bool:
        try:
            self.folder.create(lease_file(work, take), [encode(LeaseRecord(work, take, self.holder))])
        except NameTaken:
            return False
        return True


class SimulatedHolders(Holders):
    """Sees a slice that was lost once it has been silent for long enough: by then it is, where others are idle."""

    def __init__(self, simulation: Simulation, folder: Folder) -> None:
        super().__init__(folder, 90.0, lambda: simulation.folder.now)
        self.simulation = simulation

    def ended(self, holder: Holder) -> bool:
        self.simulation.folder.stat("status")
        return int(holder.slice) in self.simulation.lost


def report(fleet: Fleet) -> str:
    """Returns a row of the table in docs/slices.md."""
    simulation = Simulation(fleet)
    seconds = simulation.run()
    assert len(simulation.done) == fleet.batches
    requests = simulation.folder.requests
    peaks = [max(requests[kind].values(), default=0) for kind in ("creates", "lists", "reads")]
    total = sum(sum(counts.values()) for counts in requests.values())
    share = simulation.twice / fleet.batches
    cells = [
        f"{fleet.slices} x {fleet.feeders}",
        f"{fleet.batches:,}",
        str(simulation.blocks.per_block),
        f"{seconds:,.0f}",
        f"{total / seconds:.1f}",
        *map(str, peaks),
        f"{share:.2%}",
    ]
    return f"| {' | '.join(cells)} |"


def fleet_size(text: str) -> tuple[int, int]:
    """Returns slices and feeders of each."""
    slices, _, feeders = text.partition("x")
    return int(slices), int(feeders)


def main() -> int:
    """Runs the command line."""
    os.environ["JAX_PLATFORMS"] = "cpu"  # nothing is computed
    parser = argparse.ArgumentParser(prog="python -m tools.lease_rate", description=__doc__)
    parser.add_argument("--batches", type=int, default=20_000)
    parser.add_argument("--batch-s", type=float, default=30.0, help="seconds that a feeder computes a batch")
    parser.add_argument("--fleets", type=fleet_size, nargs="*", help="slices and feeders of each, as in 64x16")
    options = parser.parse_args()
    print("| slices x feeders | batches | in a block | seconds | requests/s | creates/s | lists/s | reads/s | twice |")
    print("|---|---|---|---|---|---|---|---|---|")
    for slices, feeders in options.fleets or ((3, 2), (8, 8), (64, 16)):
        print(report(Fleet(slices, feeders, options.batches, options.batch_s)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
