"""`watch` replaces a pod whose machine is bad, keeps one that only lost a host, and tries neither without end."""

from collections.abc import Callable
from pathlib import Path

import pytest
from simulated_cloud import World, job, world
from simulated_hosts import BATCHES, SimHosts

from launch.__main__ import main
from launch.cause import Cause
from launch.cloud import calls
from launch.cloud.budgets import Budgets, Step, budgets_of, payer
from launch.cloud.gcloud import Reach
from launch.cloud.job import kill
from launch.cloud.outcome import End, NodeView, Outcome, not_started
from launch.cloud.remote import NoAnswer, Refused
from launch.shell import Finished
from pod_job.config.load import load
from pod_job.run_folder.layout import METADATA
from pod_job.run_folder.pods import read_pods
from pod_job.run_folder.status import EndKind
from tools.fakepod.cloud import UNAUTHENTICATED, ApiError

__all__ = ["world"]  # the fixture

READY = NodeView("READY")


def lost(kind: EndKind | None, node: NodeView = READY) -> Outcome:
    return Outcome(End.lost, Cause(1, "vfio is busy", kind), node=node)


PREEMPTED = Outcome(End.preempted, node=NodeView("PREEMPTED"))
STEPS = {
    "done": (Outcome(End.done), Step.end, None),
    "asked to stop": (Outcome(End.stopped), Step.end, None),
    "limit": (Outcome(End.limit, limit="cloud.max_hours=1 is reached"), Step.end, None),
    "a bug": (Outcome(End.failed, Cause(1, "KeyError", EndKind.bug)), Step.end, None),
    "a user's error": (Outcome(End.failed, Cause(1, "no file", EndKind.user_error)), Step.end, None),
    "preempted": (PREEMPTED, Step.new_pod, "preemptions"),
    "a bad machine": (lost(EndKind.bad_machine), Step.new_pod, "bad_machines"),
    "lost on a sick pod": (lost(None, NodeView("READY", "UNHEALTHY_MAINTENANCE")), Step.new_pod, "bad_machines"),
    "a lost host": (lost(None), Step.same_pod, "failures"),
    "a lost peer": (lost(EndKind.lost_peer), Step.same_pod, "failures"),
    "no host answers": (Outcome(End.lost, Cause(0, "no answer"), unreached=True), Step.again, "failures"),
}


@pytest.mark.parametrize("name", STEPS)
def test_next_step_and_who_pays_for_it(name: str) -> None:
    outcome, step, payer_name = STEPS[name]
    budgets = Budgets({"preemptions": 2, "bad_machines": 2, "failures": 2})
    assert payer(outcome) == payer_name
    for spent in (1, 2):
        budgets, taken = budgets.after(outcome)
        assert taken is step
        if payer_name:
            assert budgets.spent == {payer_name: spent}
            assert budgets.line(outcome) == f"{spent} of 2 cloud.{payer_name} used"
    budgets, taken = budgets.after(outcome)
    assert taken is Step.end
    if payer_name:
        assert budgets.line(outcome) == f"3 of 2 cloud.{payer_name} used; giving up"


def test_each_budget_is_its_own_and_comes_from_the_configuration() -> None:
    job = ["experiment=v5e64", "storage.run_dir=gs://b/r"]
    config = load([*job, "cloud.preemptions=4", "cloud.bad_machines=1", "cloud.failures=0"])
    budgets = budgets_of(config.cloud)
    budgets, _ = budgets.after(PREEMPTED)
    budgets, step = budgets.after(lost(EndKind.bad_machine))
    assert step is Step.new_pod
    assert budgets.after(lost(None))[1] is Step.end
    assert budgets.after(lost(EndKind.bad_machine))[1] is Step.end
    assert budgets.after(PREEMPTED)[1] is Step.new_pod


KEY = "me@10.0.0.1: Permission denied (publickey)."
NOT_STARTED = {
    "the pod was taken away": (NoAnswer([0, 1], 2, "timed out"), NodeView("PREEMPTED"), End.preempted, None),
    "it is being stopped": (Refused(0, "no bucket", by_all=True), NodeView("STOPPING"), End.preempted, None),
    "one host is silent": (NoAnswer([1], 2, "timed out"), READY, End.lost, Step.new_pod),
    "all are silent": (NoAnswer([0, 1], 2, "timed out"), READY, End.lost, Step.again),
    "the key is refused": (NoAnswer([0, 1], 2, KEY), READY, End.failed, Step.end),
    "one host's disk is full": (Refused(1, "failed: no space"), READY, End.lost, Step.new_pod),
    "no host can install": (Refused(0, "failed: no such jax", by_all=True), READY, End.failed, Step.end),
    "an earlier start runs": (Refused(1, "still runs", earlier=True), READY, End.lost, Step.same_pod),
}


@pytest.mark.parametrize("name", NOT_STARTED)
def test_a_start_that_hosts_did_not_do(name: str) -> None:
    error, node, end, step = NOT_STARTED[name]
    outcome = not_started(error, node)
    assert outcome.end is end
    if step:
        assert Budgets({"preemptions": 1, "bad_machines": 1, "failures": 1}).after(outcome)[1] is step


def test_no_host_reached_twice_is_a_pod_to_replace() -> None:
    budgets = Budgets({"preemptions": 1, "bad_machines": 1, "failures": 2})
    silence = NoAnswer([0, 1], 2, "timed out")
    first = not_started(silence, READY)
    budgets, step = budgets.after(first)
    assert step is Step.again
    second = not_started(silence, READY, first)
    budgets, step = budgets.after(second)
    assert step is Step.new_pod
    assert budgets.spent == {"failures": 1, "bad_machines": 1}
    assert budgets.after(not_started(silence, READY, second))[1] is Step.again  # the new pod may take its time too


@pytest.mark.parametrize(
    ("answers", "ended"),
    [
        ("pod-job 0 KILLED a\npod-job 1 NOT_RUNNING\n", True),
        ("pod-job 0 KILLED a\n", False),
        ("pod-job 0 KILLED a\npod-job 1 FAILED the job did not end within 10 s\n", False),
        ("", False),
    ],
)
def test_ending_a_job_raises_no_error_for_a_host_out_of_reach(
    answers: str, ended: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "call", lambda *_, **__: Finished(255, answers, "ssh: connect: timed out"))
    config = load(["experiment=v5e64", f"storage.run_dir={tmp_path}", "pod.hosts=2", "mesh.data=1"])
    assert kill(Reach("extract-1", "us-west4-a", None, False, []), config, lambda _: None) == ended


def watch(world: World, capfd: pytest.CaptureFixture[str], *more: str) -> tuple[int, str]:
    """Returns the exit status of `watch`, and what it said."""
    status = main(["watch", *job(world, *more), "--no-preflight"])
    return status, capfd.readouterr().err


def every_pod(world: World, fault: Callable[[SimHosts], object]) -> None:
    """Lets every pod's job meet a fault."""

    def strike(world: World) -> None:
        fault(world.machines[0])
        world.stages["running"] = strike

    world.stages["running"] = strike


@pytest.mark.parametrize(
    ("code", "kind", "field", "pods"), [(137, None, "failures", 1), (1, EndKind.bad_machine, "bad_machines", 2)]
)
def test_the_budget_of_what_happens_again_and_again_ends(
    world: World, capfd: pytest.CaptureFixture[str], code: int, kind: EndKind | None, field: str, pods: int
) -> None:
    every_pod(world, lambda hosts: hosts.end(1, code, kind))
    status, printed = watch(world, capfd, f"cloud.{field}=1")
    assert status == 1
    assert f"2 of 1 cloud.{field} used; giving up" in printed
    assert world.creates == pods
    assert world.empty


@pytest.mark.parametrize("stage", ["preparing", "running"])
def test_a_pod_of_which_no_host_answers_is_replaced(
    stage: str, world: World, capfd: pytest.CaptureFixture[str]
) -> None:
    def strike(world: World) -> None:
        for host in world.machines[0].hosts:
            host.silent = True

    world.stages[stage] = strike
    status, printed = watch(world, capfd, "cloud.stall_s=5000")
    assert status == 0, printed
    assert "cannot be reached over ssh" in printed
    assert "1 of 3 cloud.bad_machines used" in printed
    assert (world.creates, world.empty) == (2, True)


EXPIRED = ApiError(UNAUTHENTICATED, "Request had invalid authentication credentials. Run `gcloud auth login`")


def test_expired_credentials_are_said_with_what_stays_and_a_login_goes_on(
    world: World, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simulated_hosts.DONE_S", 500)
    monkeypatch.setattr("launch.cloud.observe.BLIND_S", 200.0)
    monkeypatch.setattr("launch.cloud.observe.POLL_S", 20.0)
    world.stages["running"] = lambda world: world.cloud.fail_requests(EXPIRED, 330)
    status, printed = watch(world, capfd, "cloud.stall_s=5000")
    assert status == 0, printed
    assert world.empty
    (line,) = [line for line in printed.splitlines() if "not seen for" in line]
    assert "extract-1 in us-west4-a stays (READY), at $7.38 an hour; delete it: pod-job down experiment=v5e64" in line
    assert "log in, `gcloud auth login" in line
    assert printed.count("looking again") < 6, printed


def test_preemptions_have_an_end(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    every_pod(world, lambda _: world.cloud.preempt("extract-1"))
    status, printed = watch(world, capfd, "cloud.preemptions=1")
    assert status == 1
    assert "2 of 1 cloud.preemptions used; giving up" in printed
    assert world.creates == 2
    assert world.empty


def test_the_limit_of_hours_ends_a_run_through_preemptions(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    every_pod(world, lambda _: world.cloud.preempt("extract-1"))
    status, printed = watch(world, capfd, "cloud.max_hours=0.05")
    assert status == 1
    assert "cloud.max_hours=0.05 is reached" in printed
    assert world.empty
    assert 1 < world.creates < 5
    assert float(world.starts[0]["LEFT_S"]) < 180
    assert world.starts[0]["POD"].endswith("/queuedResources/extract-1")


@pytest.mark.parametrize("ahead_h", [-7, 9])
def test_the_limit_counts_by_the_clock_of_the_api(
    world: World, capfd: pytest.CaptureFixture[str], ahead_h: float
) -> None:
    """The workstation's clock, or its time zone, is off by hours: that neither ends the run nor lets it cost more."""
    world.ahead_s = 3600.0 * ahead_h
    every_pod(world, lambda _: world.cloud.preempt("extract-1"))
    status, printed = watch(world, capfd, "cloud.max_hours=0.05")
    assert status == 1
    assert "cloud.max_hours=0.05 is reached" in printed
    assert 1 < world.creates < 5
    assert 0 < float(world.starts[0]["LEFT_S"]) < 180
    ends = [record.ended - record.created for record in read_pods(world.folder) if record.ended is not None]
    assert all(0 < seconds < 400 for seconds in ends)


def test_what_is_committed_whole_is_merged_without_a_pod(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    for number in range(1, BATCHES + 1):
        world.commit(number)
    assert watch(world, capfd)[0] == 0
    assert world.creates == 0
    assert world.folder.stat(METADATA) is not None


@pytest.mark.parametrize("code", [137, 139])
def test_a_host_that_dies_when_all_is_committed_costs_nothing(
    world: World, capfd: pytest.CaptureFixture[str], code: int
) -> None:
    world.stages["merging"] = lambda world: world.machines[0].end(1, code)
    status, printed = watch(world, capfd, "cloud.failures=0", "cloud.bad_machines=0")
    assert status == 0, printed
    assert "all 4 batches are committed: merging them from here" in printed
    assert (world.creates, len(world.starts), world.empty) == (1, 1, True)


def test_a_finished_run_needs_no_pod(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    assert watch(world, capfd)[0] == 0
    before = world.creates
    for verb in ("run", "watch"):
        assert main([verb, *job(world), "--no-preflight"]) == 0
        assert f"{world.folder.url} is already complete" in capfd.readouterr().err
    assert world.creates == before
    assert world.folder.stat(METADATA) is not None


def test_run_and_up_say_what_stays_when_they_fail(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    world.stages["preparing"] = lambda world: setattr(world.machines[0].hosts[1], "silent", True)
    assert main(["run", *job(world), "--no-preflight"]) == 2
    printed = capfd.readouterr().err
    assert "extract-1 in us-west4-a stays (READY), at $7.38 an hour; delete it: pod-job down experiment=" in printed
    assert not world.empty


def test_a_network_that_stays_away_ends_with_what_may_exist(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    world.stages["creating"] = lambda world: setattr(world, "crashes", 10_000)
    status, printed = watch(world, capfd)
    assert status == 2
    assert "extract-1 may exist in us-west4-a, us-west4-b, at $7.38 an hour" in printed
    assert "delete it: pod-job down experiment=v5e64" in printed
