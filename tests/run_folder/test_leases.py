"""Leases: one holder of each block, whoever comes and goes; no clock is compared with another."""

import math
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pod_job.run_folder.layout import BLOCKS, LEASES, lease_file
from pod_job.run_folder.leases import (
    MOST_PER_BLOCK,
    Blocks,
    Holder,
    Holders,
    Leases,
    agreed_blocks,
    block_name,
    first_block,
    next_block,
    per_block,
)
from pod_job.run_folder.slices import report_folder, slice_names
from pod_job.run_folder.status import HostStatus, Phase, write_status
from pod_job.storage.folder import Folder
from pod_job.storage.open import open_folder

SILENCE_S = 90.0


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return open_folder(tmp_path)


def holder(name: str, attempt: str = "first") -> Holder:
    return Holder(name, 0, attempt)


class Heartbeat:
    """A slice's only host, whose status says a time of its own clock."""

    def __init__(self, folder: Folder, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reports, self.patch = report_folder(folder, name), monkeypatch

    def beat(self, at: float, attempt: str = "first", phase: Phase = Phase.extracting) -> None:
        self.patch.setattr("pod_job.run_folder.status.time.time", lambda: at)
        write_status(self.reports, HostStatus(host=0, attempt=attempt, phase=phase))


@pytest.mark.parametrize(("total", "size"), [(1, 1), (7, 3), (9, 3), (1000, 7), (5, 100)])
def test_blocks_hold_every_batch_once(total: int, size: int) -> None:
    blocks = Blocks(total, size)
    batches = [batch for block in range(blocks.count) for batch in blocks.batches(block)]
    assert batches == list(range(1, total + 1))
    assert all(batch in blocks.batches(blocks.block_of(batch)) for batch in batches)
    assert blocks.unfinished(set(batches)) == []
    assert blocks.unfinished(set(batches) - {total}) == [blocks.count - 1]


@pytest.mark.parametrize(("batches", "feeders"), [(1, 1), (100, 64), (100_000, 12), (1_000_000, 1024)])
def test_a_block_is_a_small_part_of_what_a_feeder_does(batches: int, feeders: int) -> None:
    size = per_block(batches, feeders)
    assert size == 1 or size * feeders * 32 <= batches
    assert 1 <= size <= MOST_PER_BLOCK


def test_all_slices_cut_the_run_as_the_first_has(folder: Folder) -> None:
    assert agreed_blocks(folder, Blocks(100, 4)) == agreed_blocks(folder, Blocks(100, 9)) == Blocks(100, 4)
    assert agreed_blocks(folder, Blocks(100, 4)).per_block == 4
    assert folder.names(BLOCKS) == [BLOCKS]


def test_of_many_takers_at_once_one_has_the_work(folder: Folder) -> None:
    takers = [Leases(folder, holder(f"s{number}")) for number in range(16)]
    for take in (1, 2):
        with ThreadPoolExecutor(16) as pool:
            results = list(pool.map(lambda leases, take=take: leases.take("block_000003", take), takers))
        assert results.count(True) == 1
        winner = takers[results.index(True)].holder
        for leases in takers:
            leases.refresh()
            assert leases.takes == {"block_000003": take}
            assert leases.holder_of("block_000003") == winner


def test_a_take_whose_answer_was_lost_is_still_the_taker_s(folder: Folder) -> None:
    leases = Leases(folder, holder("a"))
    assert leases.take("merge", 1)
    assert leases.take("merge", 1)
    assert not Leases(folder, holder("a", attempt="second")).take("merge", 1)


def test_a_lease_has_no_time_in_it(folder: Folder) -> None:
    Leases(folder, holder("a")).take("block_000000", 1)
    assert folder.read(lease_file("block_000000", 1)) == (
        b'{"work":"block_000000","take":1,"holder":{"slice":"a","host":0,"attempt":"first"}}'
    )


@pytest.mark.parametrize("content", [b"", b"{", b'{"work":"block_000000"}', b"\x00" * 64])
def test_a_damaged_lease_is_nobody_s(folder: Folder, content: bytes) -> None:
    folder.create(lease_file("block_000000", 1), [content])
    leases = Leases(folder, holder("a"))
    leases.refresh()
    assert leases.takes == {"block_000000": 1}
    assert leases.holder_of("block_000000") is None


def test_other_names_among_the_leases_are_left_alone(folder: Folder) -> None:
    for name in ("blocks.json", "block_1_take_01.json", "block_000001_take_1.json", "notes.txt"):
        folder.create(LEASES + name, [b"{}"])
    leases = Leases(folder, holder("a"))
    leases.refresh()
    assert leases.takes == {}


@pytest.mark.parametrize("skew_s", [-86400.0, 0.0, 86400.0])
def test_a_holder_ends_by_its_silence_whatever_its_clock_says(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, skew_s: float
) -> None:
    now = 1000.0
    heartbeat, holders = Heartbeat(folder, "b", monkeypatch), Holders(folder, SILENCE_S, lambda: now)
    for second in range(0, 600, 15):
        now = 1000.0 + second
        heartbeat.beat(skew_s + second)
        assert not holders.ended(holder("b"))
    for silent_s, ended in ((SILENCE_S, False), (SILENCE_S + 1, True)):
        now = 1585.0 + silent_s
        assert holders.ended(holder("b")) == ended
    heartbeat.beat(skew_s + 5000)  # its network was away
    assert not holders.ended(holder("b"))


def test_who_looks_for_the_first_time_does_not_take_an_old_status_for_silence(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    Heartbeat(folder, "b", monkeypatch).beat(0.0)
    assert not Holders(folder, SILENCE_S).ended(holder("b"))
    assert not Holders(folder, SILENCE_S).ended(holder("never-reported"))


@pytest.mark.parametrize("phase", list(Phase))
def test_a_holder_that_says_so_or_was_started_again_has_ended_at_once(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, phase: Phase
) -> None:
    heartbeat, holders = Heartbeat(folder, "b", monkeypatch), Holders(folder, SILENCE_S)
    heartbeat.beat(0.0, phase=phase)
    assert holders.ended(holder("b")) == phase.ended
    heartbeat.beat(1.0, attempt="second")
    assert holders.ended(holder("b"))
    assert not holders.ended(holder("b", attempt="second"))


def test_a_taker_reads_on_and_then_goes_to_the_middle_of_the_longest_gap() -> None:
    assert next_block({0, 1, 2}, None, 1) == 1
    assert next_block({0, 1}, None, 2) == 0
    assert next_block({3, 9}, 2, 0) == 3
    assert next_block({3, 10, 11, 12, 20}, 5, 0) == 11
    assert next_block(set(), 5, 0) is None


@pytest.mark.parametrize("takers", [1, 64])
def test_takers_of_any_number_take_every_block_once_and_mostly_in_order(folder: Folder, takers: int) -> None:
    count, rng = 128, random.Random(takers)
    views = [Leases(folder, holder(f"s{number}")) for number in range(takers)]
    last: list[int | None] = [None] * takers
    taken: list[int] = []
    jumps = 0
    while len(taken) < count:
        taker = rng.randrange(takers)
        leases = views[taker]
        leases.refresh()
        free = {block for block in range(count) if block_name(block) not in leases.takes}
        block = next_block(free, last[taker], first_block(leases.holder, count))
        assert block is not None
        assert leases.take(block_name(block), 1)
        before = last[taker]
        jumps += before is not None and block != before + 1
        last[taker] = block
        taken.append(block)
    assert sorted(taken) == list(range(count))
    assert jumps <= takers * math.log2(count)


def test_slices_are_listed_by_what_they_report(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("10", "9", "big-one"):
        Heartbeat(folder, name, monkeypatch).beat(0.0)
    folder.create("slices/Not A Name/status/host_00.json", [b"{}"])
    assert slice_names(folder) == ["9", "10", "big-one"]
    assert report_folder(folder, None) is folder
