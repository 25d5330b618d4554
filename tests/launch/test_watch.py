"""`watch` replaces a pod whose machine is bad and keeps one that only lost a host, each within cloud.failures."""

from argparse import Namespace
from pathlib import Path

import pytest

from launch.cause import Cause
from launch.cloud.outcome import End, Outcome
from launch.verbs import watch
from pod_job.run_folder.status import EndKind

JOB = ["experiment=v5e64", "storage.run_dir=gs://bucket/run", "cloud.zones=[us-west4-a]", "cloud.failures=2"]


def watched(outcomes: list[Outcome], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs `watch` on starts that end with these outcomes; returns what was done to the pod, in order."""
    done: list[str] = []
    left = iter(outcomes)
    monkeypatch.setattr(watch, "start", lambda *_: done.append("start"))
    monkeypatch.setattr(watch, "until_end", lambda *_: next(left))
    monkeypatch.setattr(watch, "kill", lambda *_: done.append("kill"))
    monkeypatch.setattr(watch, "leave", lambda *_: done.append("delete"))
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
