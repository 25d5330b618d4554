"""Several slices: what each runs, which zones it tries, when the run has ended, and what all of them may cost."""

from itertools import product

import msgspec
import pytest
from rich.console import Console

from launch.cause import Cause
from launch.cloud.fleet import SliceEnd, end_of_run, zone_order
from launch.cloud.limits import nearest_limit
from launch.cloud.outcome import End, NodeView, Outcome
from launch.cloud.request import pod_name, pod_names
from launch.slices import Next, after_loss, has_slices, slice_jobs
from launch.view.progress import slice_bars
from launch.view.status_view import RunStatus, SliceStatus, line, table
from pod_job.config.load import load
from pod_job.errors import JobError
from pod_job.host.rendezvous import this_host
from pod_job.preflight.lines import cost_lines
from pod_job.preflight.prices import hours
from pod_job.preflight.records import StartTimes, WholeRun
from pod_job.preflight.whole_run import priced
from pod_job.run_folder.pods import PodRecord
from pod_job.run_folder.status import EndKind, HostStatus, Phase

JOB = ["experiment=v5e64", "storage.run_dir=gs://bucket/run", "cloud.zones=[us-west4-a,us-west4-b,us-east5-a]"]
LOST = Outcome(End.lost, Cause(1, "gone", None))
PREEMPTED = Outcome(End.preempted, node=NodeView("PREEMPTED"))
BUG = Outcome(End.failed, Cause(1, "KeyError", EndKind.bug))


def test_each_slice_has_its_own_name_pod_and_port() -> None:
    overrides = [*JOB, "pod.slices=3", "pod.port=9000"]
    config = load(overrides)
    jobs = slice_jobs(config, overrides)
    assert has_slices(config)
    assert not any(has_slices(job.config) for job in jobs)
    assert [job.config.pod.port for job in jobs] == [9000, 9001, 9002]
    for job in jobs:
        started = load(job.overrides)
        assert (started.pod.slice, started.pod.slices) == (job.name, 3)
        assert this_host_name(started.pod) == job.name
    assert pod_names(config) == [pod_name(job.config) for job in jobs]
    assert len({*pod_names(config)}) == 3


def this_host_name(pod: object) -> str | None:
    """Returns the slice that a host of the pod takes itself to be of."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POD_JOB_HOST", "0")
        return this_host(pod).slice  # type: ignore[arg-type]


def test_a_host_that_does_not_know_its_slice_says_how_to_start_it() -> None:
    with pytest.raises(JobError, match=r"^pod.slices=2: .* pod.slice=NAME"):
        this_host(load([*JOB, "pod.slices=2"]).pod)


@pytest.mark.parametrize("name", ["", "A", "a b", "-a", "../x", "a" * 41])
def test_a_slice_has_a_name_that_pods_and_folders_can_have(name: str) -> None:
    with pytest.raises(JobError, match=r"pod.slice="):
        load([*JOB, f"pod.slice='{name}'"])


@pytest.mark.parametrize(("may_pass", "asked", "lost"), [*product([True, False], [True, False], [1, 2, 3])])
def test_a_slice_that_ends_early_ends_the_run_only_where_all_would(may_pass: bool, asked: bool, lost: int) -> None:
    step = after_loss(may_pass, asked, lost, budget=2)
    if asked:
        assert step is Next.leave
    elif not may_pass:
        assert step is Next.end
    else:
        assert step is (Next.restart if lost <= 2 else Next.leave)


ENDS = {
    "nothing yet": ({}, None),
    "one lost for good": ({"0": SliceEnd(outcome=LOST)}, None),
    "one never came": ({"2": SliceEnd()}, None),
    "one done": ({"0": SliceEnd(outcome=LOST), "1": SliceEnd(outcome=Outcome(End.done))}, End.done),
    "one done and one wrong": ({"0": SliceEnd(outcome=BUG), "1": SliceEnd(outcome=Outcome(End.done))}, End.done),
    "a bug": ({"0": SliceEnd(outcome=BUG)}, End.failed),
    "all lost": ({name: SliceEnd(outcome=PREEMPTED) for name in "012"}, End.preempted),
    "all at the limit": ({name: SliceEnd(outcome=Outcome(End.limit, limit="x")) for name in "012"}, End.limit),
}


@pytest.mark.parametrize("name", ENDS)
def test_the_run_ends_with_the_first_slice_that_is_done_or_wrong_and_else_with_the_last(name: str) -> None:
    ends, expected = ENDS[name]
    end = end_of_run(ends, slices=3)
    assert (end and end.outcome and end.outcome.end) == expected


def test_a_wrong_request_ends_the_run() -> None:
    error = JobError("us-west4-a refuses")
    end = end_of_run({"0": SliceEnd(error=error)}, slices=3)
    assert end is not None
    assert end.error is error


def test_slices_ask_different_zones_first_and_then_where_there_is_capacity() -> None:
    zones = ["a", "b", "c"]
    assert [zone_order(zones, number, {})[0] for number in range(4)] == ["a", "b", "c", "a"]
    assert all(sorted(zone_order(zones, number, {"b": False})) == zones for number in range(3))
    assert zone_order(zones, 1, {"b": False, "a": True}) == ["a", "c", "b"]
    assert zone_order(["a"], 5, {"a": False}) == ["a"]


@pytest.mark.parametrize("limit", ["cloud.max_hours=3", "cloud.max_usd=3"])
def test_all_slices_together_stay_within_one_limit(limit: str) -> None:
    """Each is told how long it may run when it starts; whenever they start, the sum is within the limit."""
    config = load([*JOB, limit, "cloud.price_per_chip_hour=0.015625", "pod.slices=3", "pod.slice='0'"])
    starts = [0.0, 600.0, 700.0, 2400.0, 5000.0]
    records: list[PodRecord] = []
    ends: list[float] = []
    for number, start in enumerate(starts):
        if sum(end > start for end in ends) == 3:  # the oldest is taken away, and replaced
            first = next(index for index, end in enumerate(ends) if end > start)
            ends[first] = start
        now = start + 1
        known = [
            PodRecord(record.name, "z", "v5litepod-64", "spot", record.created, end if end <= now else None)
            for record, end in zip(records, ends, strict=True)
        ]
        own = PodRecord(f"p{number}", "z", "v5litepod-64", "spot", start)
        alive = [record.key for record in [*known, own] if record.ended is None]
        left = nearest_limit(config, [*known, own], alive, heard=now, now=now)
        assert left is not None
        records.append(own)
        ends.append(now + max(0.0, left.left_s))
    paid = sum(end - record.created for record, end in zip(records, ends, strict=True)) / 3600
    assert 2.0 < paid <= 3.01


def test_a_pod_that_was_taken_away_is_paid_until_the_next_of_its_own_name() -> None:
    records = [
        PodRecord("p-0", "z", "v5litepod-4", "spot", 0.0),
        PodRecord("p-1", "z", "v5litepod-4", "spot", 60.0),
        PodRecord("p-0", "z", "v5litepod-4", "spot", 3600.0),
    ]
    alive = [records[1].key, records[2].key]
    paid = hours(records, alive, heard=7200.0, now=7200.0)
    assert [round(3600 * time_h) for _, time_h in paid] == [3600, 7140, 3600]


def host(phase: Phase, batches: int) -> HostStatus:
    computed = {"batches": batches, "prompt_tokens": 100 * batches, "batch_tokens": 100.0}
    return HostStatus(host=0, attempt="a", phase=phase, tokens=100, seconds=2.0, **computed)


def status(*slices: SliceStatus) -> RunStatus:
    hosts = [host for one in slices for host in one.hosts]
    nothing = dict.fromkeys(("batches_per_hour", "tokens_per_s", "left_s", "ready_at", "cost_so_far", "cost_expected"))
    return RunStatus(
        run="r", batches_done=1, batches=9, **nothing, pod_hours=[], pods=[], hosts=hosts, slices=list(slices)
    )


def test_status_shows_slices_with_their_zones_in_one_table() -> None:
    run = status(
        SliceStatus("0", "us-west4-a", "READY", [host(Phase.extracting, 3), host(Phase.extracting, 4)]),
        SliceStatus("1", "", "", [None, None]),
    )
    console = Console(width=160)
    with console.capture() as shown:
        console.print(table(run))
    rows = [text.split() for text in shown.get().splitlines()]
    assert ["0", "us-west4-a", "READY", "2", "extracting", "7", "100"] in [row[:7] for row in rows]
    assert ["1", "2", "not", "heard", "of", "0"] in [row[:6] for row in rows]
    assert "2 extracting, 2 not heard of" in line(run)


def test_progress_does_not_wait_for_a_slice_that_never_comes() -> None:
    hosts = [host(Phase.extracting, 3), None, host(Phase.extracting, 4), None]
    shown = {bar.name: (bar.done, bar.total) for bar in slice_bars(hosts, batches=20, done_before=5)}
    assert shown["hosts arrived"] == shown["compile"] == (2, 2)
    assert shown["tokens"] == (1200, 2000)  # of batches of 100 tokens
    assert slice_bars([None, None], 20, 0) == []


def test_a_run_has_ended_when_a_slice_is_done_though_another_never_reported() -> None:
    done = SliceStatus("0", "z", "READY", [host(Phase.done, 3)])
    lost = SliceStatus("1", "", "", [host(Phase.extracting, 1)])
    assert status(done, lost).ended
    assert not status(lost, SliceStatus("2", "", "", [None])).ended
    assert status(SliceStatus("1", "", "", [host(Phase.failed, 1)])).ended


def test_a_plan_counts_the_starts_and_the_hours_of_all_slices() -> None:
    config = load([*JOB, "pod.slices=3", "cloud.price_per_chip_hour=1", "cloud.capacity=on_demand"])
    start = StartTimes(prepare_s=600.0, weights_s=900.0, compile_s=300.0)
    run = WholeRun(samples=9, tokens=9, new_tokens=0, rows=9, bytes=9, steps=9, hours=1.5, slices=3)
    planned = priced(run, start, config)
    assert planned.usd_list == pytest.approx(3 * (0.5 + 1.5) * 64)
    alone = priced(msgspec.structs.replace(run, slices=1), start, config)
    lines = [" ".join(text for _, text in cost_lines(plan, "prices")) for plan in (planned, alone)]
    assert "then 1.500 hours of steps with 3 slices at work." in lines[0]
    assert "then 1.500 hours of steps." in lines[1]
