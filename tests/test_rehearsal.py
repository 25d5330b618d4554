"""Whole jobs on a simulated pod, driven by the real gcloud over real ssh: started, watched, disturbed, finished."""

import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from rehearsal import OTHER_ZONE, PROMPTS, ZONE, Rehearsal, rehearsal, secret_seen

from pod_job.dataset import ActivationDataset
from tools.bucket import bucket_available
from tools.fakepod import fakepod_available
from tools.fakepod.cloud import CAPACITY

pytestmark = pytest.mark.slow
SECRET = "s3cr3t'\"$(touch stolen)"
BATCHES = 11


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, require: Callable[[bool, str], None]) -> Iterator[Rehearsal]:
    require(fakepod_available() is None, str(fakepod_available()))
    require(bucket_available() is None, str(bucket_available()))
    with rehearsal(tmp_path_factory.mktemp("rehearsal")) as stage:
        yield stage


def test_up_run_status_logs_down(stage: Rehearsal, capfd: pytest.CaptureFixture[str]) -> None:
    """The first zone has no capacity, one ssh breaks during the start, and a secret goes to every host."""
    hosts = 4
    job = stage.job("calm", hosts, "cloud.secrets=[REHEARSAL_SECRET]")
    stage.world.cloud.refuse(ZONE, CAPACITY)
    began = time.time()
    _, said = stage.launch("up", *job)
    assert f"{ZONE}: {CAPACITY}" in said
    assert stage.world.cloud.created == [ZONE, OTHER_ZONE]
    machines = stage.world.hosts(stage.name)

    machines.drop_next_login(2)
    out, said = stage.launch("run", *job, "--json", REHEARSAL_SECRET=SECRET)
    assert json.loads(out)["hosts"] == hosts
    attempt = json.loads(out)["attempt"]
    assert [len(list(home.glob(".pod_job/attempts/*"))) for home in machines.homes] == [1] * hosts
    first = stage.wait_for_records("calm", 1) - began

    out, _ = stage.launch("run", *job, "--json", "--follow", REHEARSAL_SECRET=SECRET)
    summary = json.loads(out)
    assert summary["complete"]
    assert summary["prompts"] == PROMPTS
    status = json.loads(stage.launch("status", *job, "--json")[0])
    assert (status["batches_done"], status["batches"]) == (BATCHES, BATCHES)
    assert [pod["state"] for pod in status["pods"]] == ["READY"]
    assert [host["phase"] for host in status["hosts"]] == ["done"] * hosts
    assert status["hosts"][0]["attempt"] >= attempt

    stage.launch("down", *job)
    assert not stage.world.cloud.nodes
    assert not stage.world.cloud.queued
    logs = stage.launch("logs", *job)[0].splitlines()
    assert {line[:3] for line in logs if line.endswith("INFO done")} == {"00 ", "01 ", "02 ", "03 "}
    assert all(line[3:].split(" INFO")[0] for line in logs)
    assert secret_seen([stage.root], SECRET) == []
    assert not list(stage.root.rglob("stolen"))
    with capfd.disabled():
        print(f"\nfrom `launch up` to the first committed batch, {hosts} workers: {first:.1f} s")


def test_watch_through_a_preemption_and_its_own_death(stage: Rehearsal, capfd: pytest.CaptureFixture[str]) -> None:
    """The pod is taken away in mid-run and comes back at other addresses; the dataset is that of a calm run."""
    job = stage.job("stormy", 2, "extract.save_every_n_samples=1")
    watcher = stage.start("watch", *job)
    stage.wait_for_records("stormy", 1, watcher)
    watcher.kill()
    watcher.communicate()
    addresses = stage.world.cloud.addresses(stage.name)
    stage.world.cloud.preempt(stage.name)
    preempted = time.time()
    before = stage.records("stormy")
    assert before < PROMPTS
    watcher = stage.start("watch", *job, "--json")
    again = stage.wait_for_records("stormy", before + 1, watcher) - preempted
    assert set(stage.world.cloud.addresses(stage.name)).isdisjoint(addresses)
    out, said = watcher.communicate(timeout=200)
    assert watcher.returncode == 0, said
    assert json.loads(out)["complete"]
    assert not stage.world.cloud.nodes
    calm, stormy = (ActivationDataset(str(stage.folder(run)), layer=3) for run in ("calm", "stormy"))
    assert calm.rows(slice(None))["task_id"].tolist() == stormy.rows(slice(None))["task_id"].tolist()
    np.testing.assert_allclose(stormy[:], calm[:], rtol=1e-5, atol=1e-5)
    with capfd.disabled():
        print(f"\nfrom the preemption to the next committed batch: {again:.1f} s")


def test_watch_names_a_killed_host_and_starts_again(stage: Rehearsal) -> None:
    """A host that is killed leaves no reason: the job starts again on the same pod, and the dataset is whole."""
    job = stage.job("killed", 2, "extract.save_every_n_samples=1")
    watcher = stage.start("watch", *job, "--json")
    stage.wait_for_records("killed", 1, watcher)
    stage.world.hosts(stage.name).signal(1, signal.SIGKILL)
    out, said = watcher.communicate(timeout=200)
    assert watcher.returncode == 0, said
    assert "host 1 ended by SIGKILL" in said
    assert "1 of 2 cloud.failures used" in said
    assert json.loads(out)["complete"]


def test_a_host_with_a_reason_of_its_own_ends_the_watch(stage: Rehearsal, tmp_path: Path) -> None:
    """What the user must mend is not tried again: here a task file that only this machine has."""
    job = stage.job("wrong", 2)
    tasks = tmp_path / "tasks.json"
    tasks.write_text(Path("tests/data/arc/arc_sample.json").read_text())
    watcher = stage.start("watch", *job, f"tasks.path={tasks}")
    while not stage.world.cloud.nodes:
        time.sleep(0.05)
    tasks.unlink()
    _, said = watcher.communicate(timeout=200)
    assert watcher.returncode == 2, said
    assert "error: host" in said
    assert str(tasks) in said
    assert not stage.world.cloud.nodes
