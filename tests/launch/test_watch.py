"""`watch` replaces a pod whose machine is bad and keeps one that only lost a host, each within cloud.failures."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import pytest

from launch.cause import Cause
from launch.cloud import remote
from launch.cloud.gcloud import Reach
from launch.cloud.job import kill
from launch.cloud.observe import RunningJob
from launch.cloud.outcome import End, Outcome
from launch.shell import Finished
from launch.verbs import watch
from pod_job.errors import JobError
from pod_job.run_folder.status import EndKind
from pod_job.storage.open import open_folder

JOB = ["experiment=v5e64", "storage.run_dir=gs://bucket/run", "cloud.zones=[us-west4-a]", "cloud.failures=2"]


def watched(outcomes: Sequence[Outcome | JobError], monkeypatch: pytest.MonkeyPatch, killed: bool = True) -> list[str]:
    """Runs `watch` on starts that fail or end in this way; returns what was done to the pod, in order."""
    done: list[str] = []
    left = iter(outcomes)

    def start(*_: object) -> Outcome:
        done.append("start")
        outcome = next(left)
        if isinstance(outcome, JobError):
            raise outcome
        return outcome

    monkeypatch.setattr(watch, "start", start)
    monkeypatch.setattr(watch, "until_end", lambda _config, outcome, *_: outcome)
    monkeypatch.setattr(watch, "kill", lambda *_: done.append("kill") or killed)
    monkeypatch.setattr(watch, "delete_pods", lambda *_: done.append("delete"))
    monkeypatch.setattr(watch, "finish", lambda _config, _job, outcome, *_: done.append(outcome.end.value))
    watch.watch(Namespace(overrides=JOB, dry_run=False, no_preflight=True, json=False))
    return done


def lost(kind: EndKind | None) -> Outcome:
    return Outcome(End.lost, Cause(1, "vfio is busy", kind))


DONE = Outcome(End.done)


def test_a_bad_machine_costs_the_pod_and_a_lost_host_a_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert watched([lost(EndKind.bad_machine), lost(None), DONE], monkeypatch) == [
        *("start", "delete"),
        *("start", "kill"),
        *("start", "delete", "done"),
    ]


def test_bad_machines_have_the_budget_of_lost_hosts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = watched([lost(EndKind.bad_machine)] * 3, monkeypatch)
    assert done == ["start", "delete"] * 3 + ["lost"]
    assert "host 1 vfio is busy; 3 of 2 cloud.failures used" in capsys.readouterr().err


def test_a_pod_on_which_the_job_cannot_be_ended_is_replaced_within_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    done = watched([lost(None)] * 3, monkeypatch, killed=False)
    assert done == ["start", "kill", "delete", "start", "kill", "delete", "start", "delete", "lost"]


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
    monkeypatch.setattr(remote, "call", lambda *_, **__: Finished(255, answers, "ssh: connect: timed out"))
    job = RunningJob(Reach("extract-1", "us-west4-a", None, False, []), 2, open_folder(str(tmp_path)), "a", 4)
    assert kill(job, lambda _: None) == ended


def no_answer(answers: str, monkeypatch: pytest.MonkeyPatch) -> remote.NoAnswer:
    """Returns the error of a script for two hosts of which those in `answers` have answered."""
    monkeypatch.setattr(remote, "call", lambda *_, **__: Finished(255, answers, "ssh: connect: timed out"))
    with pytest.raises(remote.NoAnswer) as caught:
        remote.ask(Reach("extract-1", "us-west4-a", None, False, []), 2, "true")
    return caught.value


def test_a_host_out_of_reach_at_the_start_costs_the_pod_within_the_budget(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = no_answer("pod-job 0 READY found\n", monkeypatch)
    assert watched([error, DONE], monkeypatch) == ["start", "delete", "start", "delete", "done"]
    assert watched([error] * 3, monkeypatch) == ["start", "delete"] * 3 + ["lost"]
    assert "host 1 cannot be reached over ssh; 3 of 2 cloud.failures used" in capsys.readouterr().err


def test_no_pod_is_replaced_when_no_host_at_all_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be this machine's network."""
    error = no_answer("", monkeypatch)
    with pytest.raises(JobError, match=r"^worker 0, 1 of 2 gave no answer over ssh"):
        watched([error], monkeypatch)
