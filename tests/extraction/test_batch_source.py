"""Batches by lease: every batch is computed, by one slice where nothing goes wrong, whatever happens to the others."""

import threading
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from pod_job.extraction.batch_source import LeasedBatches, Reporting, Trail, look_pause_s
from pod_job.extraction.feeding import Feeding, StepRows
from pod_job.extraction.idle_slice import IdleSlice, Overdue
from pod_job.finishing.merge_once import takes_merge
from pod_job.host.rendezvous import Host
from pod_job.host.reporter import Reporter
from pod_job.host.stop_request import StopRequest
from pod_job.run_folder.layout import METADATA, commit_file
from pod_job.run_folder.leases import Blocks, Holder, Holders, Leases, block_name
from pod_job.run_folder.slices import report_folder
from pod_job.run_folder.status import Phase, write_status
from pod_job.storage.folder import Folder
from pod_job.storage.open import open_folder

BATCHES, SILENCE_S = 20, 90.0
BLOCKS = Blocks(BATCHES, 3)
ROWS = StepRows(1, NamedSharding(jax.make_mesh((1,), ("data",), devices=jax.devices()[:1]), PartitionSpec("data")))
ONE_HOST = Feeding(ROWS, 0, 1, True, (0,))


class Slice:
    """A slice of one host, which computes a batch as soon as it takes it."""

    def __init__(
        self,
        folder: Folder,
        name: str,
        now: list[float],
        attempt: str = "first",
        done: int = 0,
        blocks: Blocks = BLOCKS,
    ) -> None:
        self.folder, self.stop = folder, StopRequest()
        self.reporter = Reporter(report_folder(folder, name), Host(0, 1, attempt, None, slice=name))
        self.reporter.write()
        self.leases = Leases(folder, Holder(name, 0, attempt))
        self.holders = Holders(folder, SILENCE_S, lambda: now[0])
        pending = range(done + 1, BATCHES + 1)
        self.source = LeasedBatches(
            blocks, pending, self.leases, self.holders, ONE_HOST, Reporting(self.reporter, self.stop)
        )

    def compute(self, most: int = BATCHES, commits: bool = True) -> list[int]:
        """Takes batches of a round, and commits them."""
        batches = list(islice(self.source.batches(), most))
        for batch in batches if commits else []:
            self.folder.create(commit_file(batch), [b"{}"])
        return batches


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return open_folder(tmp_path)


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which sleepers move on."""
    moment = [1000.0]
    monkeypatch.setattr(time, "sleep", lambda seconds: moment.__setitem__(0, moment[0] + seconds))
    return moment


def test_slices_that_come_together_share_the_batches(folder: Folder, now: list[float]) -> None:
    slices = [Slice(folder, name, now) for name in "abc"]
    streams, taken = [one.source.batches() for one in slices], []
    while streams:
        for stream in list(streams):
            batch = next(stream, None)
            if batch is None:
                streams.remove(stream)
            else:
                taken.append(batch)
                folder.create(commit_file(batch), [b"{}"])
    assert sorted(taken) == list(range(1, BATCHES + 1))
    assert not any(one.source.more() for one in slices)
    assert now == [1000.0]  # nobody waited


def test_what_is_committed_is_not_taken(folder: Folder, now: list[float]) -> None:
    for batch in range(1, 8):
        folder.create(commit_file(batch), [b"{}"])
    assert sorted(Slice(folder, "a", now, done=7).compute()) == list(range(8, BATCHES + 1))


@pytest.mark.parametrize("end", ["silent", "failed", "stopped", "started again"])
def test_batches_of_a_slice_that_is_lost_are_taken_over(folder: Folder, now: list[float], end: str) -> None:
    lost, other = Slice(folder, "lost", now), Slice(folder, "other", now)
    begun = [*lost.compute(4), *lost.compute(2, commits=False)]
    taken = other.compute()
    assert not set(taken) & set(begun)
    match end:
        case "failed" | "stopped":
            lost.reporter.set(phase=Phase(end))
            lost.reporter.write()
        case "started again":
            lost = Slice(folder, "lost", now, attempt="second")
    assert other.source.more()
    assert (now[0] - 1000 > SILENCE_S) == (end == "silent")
    taken += other.compute()
    assert not other.source.more()
    assert sorted([*begun[:4], *taken]) == list(range(1, BATCHES + 1))  # none is computed twice


def test_nobody_waits_for_a_slow_slice_and_it_keeps_what_it_has_computed(
    folder: Folder, now: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, fast = Slice(folder, "slow", now), Slice(folder, "fast", now)
    slow.compute(1)
    fast.compute()
    fast.reporter.set(seconds=34.0, batches=17)  # two seconds for a batch

    def beat(seconds: float) -> None:
        now[0] += seconds
        write_status(slow.reporter.folder, slow.reporter.status)

    monkeypatch.setattr(time, "sleep", beat)
    assert fast.source.more()
    assert 10 < now[0] - 1000 < 20
    taken = fast.compute()
    assert len(taken) == 2
    assert taken == sorted(taken, reverse=True)
    assert not fast.source.more()


def test_a_slow_slice_that_makes_progress_is_left_alone(folder: Folder, now: list[float]) -> None:
    slow, fast = Slice(folder, "slow", now), Slice(folder, "fast", now)
    stream = slow.source.batches()
    folder.create(commit_file(next(stream)), [b"{}"])
    held = [next(stream), next(stream)]
    fast.compute()
    idle = IdleSlice(BLOCKS, fast.leases, fast.holders)
    for batch in held:
        assert idle.look(2.0) == []
        now[0] += 9
        slow.reporter.write()
        folder.create(commit_file(batch), [b"{}"])
    assert idle.look(2.0) is None


def test_the_later_half_of_a_long_block_is_taken_over_and_its_holder_skips_what_is_done(
    folder: Folder, now: list[float]
) -> None:
    busy, idle = (Slice(folder, name, now, blocks=Blocks(BATCHES, BATCHES)) for name in ("busy", "idle"))
    stream = busy.source.batches()
    computed: list[int | None] = [next(stream)]
    idle.reporter.set(seconds=34.0, batches=17)
    helped = idle.compute()
    assert helped == []
    while (batch := computed[-1]) is not None:
        folder.create(commit_file(batch), [b"{}"])
        if idle.source.more():
            helped += idle.compute()
        computed.append(next(stream, None))
    assert helped[:10] == [*range(20, 10, -1)]
    assert sorted([*filter(None, computed), *helped]) == list(range(1, BATCHES + 1))


def test_two_slices_do_not_help_with_the_same_half(folder: Folder, now: list[float]) -> None:
    whole = Blocks(BATCHES, BATCHES)
    busy, first, second = (Slice(folder, name, now, blocks=whole) for name in ("busy", "x", "y"))
    next(busy.source.batches())
    assert first.compute() == second.compute() == []
    assert first.source.idle.look(2.0) == second.source.idle.look(2.0) == [Overdue(0, 1, BATCHES // 2)]
    first.source.overdue = [Overdue(0, 1, BATCHES // 2)]
    assert next(iter(first.source.batches())) == BATCHES
    assert second.source.idle.look(2.0) == []


def test_a_block_is_taken_over_by_one_and_not_computed_where_it_is_done(folder: Folder, now: list[float]) -> None:
    lost, first, second = (Slice(folder, name, now) for name in ("lost", "x", "y"))
    block = BLOCKS.block_of(lost.compute(1)[0])
    lost.reporter.set(phase=Phase.failed)
    lost.reporter.write()
    first.compute()
    assert first.source.more()
    assert second.compute() == []
    assert second.source.more()
    assert first.source.overdue == second.source.overdue == [Overdue(block, 1, len(BLOCKS.batches(block)) - 1)]
    assert [first.compute(), second.compute()] == [[*BLOCKS.batches(block)][:0:-1], []]
    second.leases.refresh()
    assert second.leases.holder_of(block_name(block)) == first.leases.holder


def test_who_is_idle_at_the_same_time_asks_once_in_vain(
    folder: Folder, now: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each slice has seen the same blocks that nobody computes; in one round it asks for no second one after a no."""
    lost, answers = Slice(folder, "lost", now), dict[str, list[bool]]()
    lost.compute(commits=False)
    idle = [Slice(folder, name, now) for name in "uvwxyz"]
    take = Leases.take

    def counted(leases: Leases, work: str, number: int) -> bool:
        answers.setdefault(leases.holder.slice, []).append(take(leases, work, number))
        return answers[leases.holder.slice][-1]

    monkeypatch.setattr(Leases, "take", counted)
    for one in idle:
        one.source.overdue = [Overdue(block, 1, 3) for block in range(BLOCKS.count)]
    streams = [one.source.batches() for one in idle]
    while streams:
        streams = [stream for stream in streams if next(stream, None) is not None]
    assert sum(map(sum, answers.values())) == BLOCKS.count
    assert all(slice_answers.count(False) <= 1 for slice_answers in answers.values())


def test_a_look_reads_the_statuses_of_few_holders_and_later_ones_of_the_others(
    folder: Folder, now: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    lost, other = Slice(folder, "lost", now), Slice(folder, "other", now)
    lost.compute(commits=False)
    lost.reporter.set(phase=Phase.failed)
    lost.reporter.write()
    monkeypatch.setattr("pod_job.extraction.idle_slice.MOST_HOLDERS", 2)
    idle, seen = IdleSlice(BLOCKS, other.leases, other.holders), set[int]()
    for _ in range(BLOCKS.count // 2 + 1):
        overdue = idle.look(2.0)
        assert overdue is not None
        assert len(overdue) == 2
        seen |= {one.block for one in overdue}
    assert seen == set(range(BLOCKS.count))


@pytest.mark.parametrize(("slices", "most"), [(2, 3.0), (16, 3.0), (64, 12.0)])
def test_many_idle_slices_look_less_often_and_not_at_the_same_time(slices: int, most: float) -> None:
    pauses = {look_pause_s(slices, 0.0) for _ in range(50)}
    assert len(pauses) > 40
    assert most / 3 <= min(pauses) <= max(pauses) <= most
    assert look_pause_s(slices, 100.0) > 100


def test_a_stop_ends_the_wait(folder: Folder, now: list[float]) -> None:
    other, one = Slice(folder, "other", now), Slice(folder, "one", now)
    other.compute(1)
    one.compute()
    one.stop.request("SIGTERM")
    assert not one.source.more()
    assert one.compute() == []
    assert now == [1000.0]


def test_the_merge_is_done_by_one_slice_and_again_where_that_is_lost(
    folder: Folder, now: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = Slice(folder, "a", now), Slice(folder, "b", now)
    assert takes_merge(first.leases, first.holders, first.stop)
    second.stop.request("SIGTERM")
    assert not takes_merge(second.leases, second.holders, second.stop)
    first.reporter.set(phase=Phase.failed)
    first.reporter.write()
    again = Slice(folder, "c", now)
    assert takes_merge(again.leases, again.holders, again.stop)
    assert again.leases.takes == {"merge": 2}
    folder.create(METADATA, [b"{}"])
    monkeypatch.setattr("pod_job.finishing.merge_once.read_any", lambda folder: SimpleNamespace(complete=True))
    third = Slice(folder, "d", now)
    assert not takes_merge(third.leases, third.holders, third.stop)


def test_hosts_with_one_feeder_follow_what_the_first_of_them_takes(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, other = Slice(folder, "a", [0.0]), Slice(folder, "a", [0.0])
    trails = [Trail(Reporting(one.reporter, one.stop), "00000001_feeder_000") for one in (first, other)]
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    first.source.trail, other.source.trail = trails
    other.source.feeding = replace(ONE_HOST, writes=False)
    followed: list[list[int]] = []
    thread = threading.Thread(target=lambda: followed.extend(list(other.source.batches()) for _ in range(2)))
    thread.start()
    rounds = [list(first.source.batches())]
    first.source.overdue = [Overdue(1, 1, 3), Overdue(4, 1, 2)]
    rounds.append(list(first.source.batches()))
    thread.join(20)
    assert followed == rounds
    assert len(rounds[0]) == BATCHES
    assert rounds[1] in ([6, 5, 4, 15, 14], [15, 14, 6, 5, 4])
