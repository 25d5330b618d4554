"""Whole jobs on simulated pods, driven by the real gcloud over real ssh: started, watched, disturbed, finished."""

import json
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from rehearsal import OTHER_ZONE, PER_BATCH, PROMPTS, ZONE, Rehearsal, rehearsal, secret_seen

from pod_job.dataset import ActivationDataset
from tools.bucket import bucket_available
from tools.fakepod import fakepod_available
from tools.fakepod.cloud import CAPACITY

pytestmark = [pytest.mark.slow, pytest.mark.pod, pytest.mark.timeout(600)]
SECRET = "s3cr3t'\"$(touch stolen)"
HOSTILE = "a b 'c' $(touch stolen) `touch stolen`; touch stolen # \\ \"d\""
BATCHES = 11
ONE_EACH = "extract.save_every_n_samples=1"


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, require: Callable[[bool, str], None]) -> Iterator[Rehearsal]:
    require(fakepod_available() is None, str(fakepod_available()))
    require(bucket_available() is None, str(bucket_available()))
    with rehearsal(tmp_path_factory.mktemp("rehearsal")) as stage:
        yield stage


def test_up_run_status_logs_down(stage: Rehearsal, capfd: pytest.CaptureFixture[str]) -> None:
    """16 workers. The first zone has no capacity, an ssh breaks during the start, and every host gets a secret."""
    hosts = 16
    quoted = HOSTILE.replace("\\", "\\\\").replace("'", "\\'")
    job = stage.job("calm", hosts, "cloud.secrets=[REHEARSAL_SECRET]", f"model.revision='{quoted}'")
    stage.world.cloud.refuse(ZONE, CAPACITY)
    began = time.time()
    _, said = stage.launch("up", *job)
    assert f"{ZONE}: {CAPACITY}" in said
    assert stage.world.cloud.created == [ZONE, OTHER_ZONE]
    machines = stage.hosts("calm")

    machines.drop_next_login(2)
    out, said = stage.launch("run", *job, "--json", REHEARSAL_SECRET=SECRET)
    started = json.loads(out)
    assert started["hosts"] == hosts
    assert [len(list(home.glob(".pod_job/attempts/*"))) for home in machines.homes] == [1] * hosts
    first = stage.wait_for_records("calm", 1) - began

    stage.launch("status", *job, "--follow")
    status = json.loads(stage.launch("status", *job, "--json")[0])
    assert (status["batches_done"], status["batches"]) == (BATCHES, BATCHES)
    assert [pod["state"] for pod in status["pods"]] == ["READY"]
    stage.launch("down", *job)
    assert not stage.world.cloud.nodes
    assert not stage.world.cloud.queued
    assert len(ActivationDataset(str(stage.folder("calm")), layer=1)) == PROMPTS
    assert [host["phase"] for host in status["hosts"]] == ["done"] * hosts
    logs = stage.launch("logs", *job)[0].splitlines()
    assert {int(line[:2]) for line in logs if line.endswith("INFO done")} == set(range(hosts))
    assert [line[3:26] for line in logs] == sorted(line[3:26] for line in logs)
    assert secret_seen([stage.root], SECRET) == []
    assert not list(stage.root.rglob("stolen"))
    with capfd.disabled():
        print(f"\nfrom `launch up` to the first committed batch, {hosts} workers: {first:.1f} s")


def test_watch_through_a_preemption_and_its_own_death(stage: Rehearsal, capfd: pytest.CaptureFixture[str]) -> None:
    """The pod is taken away in mid-run and comes back at other addresses; the dataset is that of a calm run."""
    job = stage.job("stormy", 2, ONE_EACH)
    watcher = stage.start("watch", *job)
    stage.wait_for_records("stormy", 1, watcher)
    watcher.kill()
    watcher.communicate()
    addresses = stage.hosts("stormy").addresses
    stage.world.cloud.preempt(stage.pod("stormy"))
    preempted = time.time()
    before = stage.records("stormy")
    assert before < PROMPTS
    watcher = stage.start("watch", *job, "--json")
    again = stage.wait_for_records("stormy", before + 1, watcher) - preempted
    assert set(stage.hosts("stormy").addresses).isdisjoint(addresses)
    out, said = watcher.communicate(timeout=200)
    assert watcher.returncode == 0, said
    assert json.loads(out)["complete"]
    assert not stage.world.cloud.nodes
    calm, stormy = (ActivationDataset(str(stage.folder(run)), layer=3) for run in ("calm", "stormy"))
    assert calm.rows(slice(None))["task_id"].tolist() == stormy.rows(slice(None))["task_id"].tolist()
    np.testing.assert_allclose(stormy[:], calm[:], rtol=1e-5, atol=1e-5)
    with capfd.disabled():
        print(f"\nfrom the preemption to the next committed batch: {again:.1f} s")


def test_hosts_that_die_hang_never_come_or_say_why(stage: Rehearsal, tmp_path: Path) -> None:
    """Four pods at once, since most of it is waiting. Only what has no reason of its own is tried again."""
    scenes = (killed, hung, absent, wrong)
    with ThreadPoolExecutor(len(scenes)) as pool:
        for scene in [pool.submit(scene, stage, tmp_path) for scene in scenes]:
            scene.result()
    assert not stage.world.cloud.nodes


def killed(stage: Rehearsal, tmp_path: Path) -> None:
    watcher = stage.start("watch", *stage.job("killed", 2, ONE_EACH), "--json")
    stage.wait_for_records("killed", 1, watcher)
    stage.hosts("killed").signal(1, signal.SIGKILL)
    out, said = watcher.communicate(timeout=300)
    assert watcher.returncode == 0, said
    assert "host 1 ended by SIGKILL" in said
    assert "1 of 2 cloud.failures used" in said
    assert json.loads(out)["complete"]


def hung(stage: Rehearsal, tmp_path: Path) -> None:
    watcher = stage.start("watch", *stage.job("hung", 2, ONE_EACH), "--json")
    stage.wait_for_records("hung", 1, watcher)
    stage.signal_job("hung", 1, signal.SIGSTOP)
    out, said = watcher.communicate(timeout=300)
    assert watcher.returncode == 0, said
    assert "host 1 stopped answering" in said
    assert json.loads(out)["complete"]


def absent(stage: Rehearsal, tmp_path: Path) -> None:
    """Worker 1's job dies whenever it starts: the others say who is missing before jax gives up."""
    job = stage.job("absent", 2, "pod.arrival_timeout_s=15", "cloud.failures=0")
    watcher = stage.start("watch", *job)
    while watcher.poll() is None:
        stage.signal_job("absent", 1, signal.SIGKILL)
        time.sleep(0.1)
    _, said = watcher.communicate()
    assert watcher.returncode in (1, 2), said
    assert "host 1" in said.split("error: ")[-1]


def wrong(stage: Rehearsal, tmp_path: Path) -> None:
    """A task file at a path that only this machine has."""
    tasks = tmp_path / "tasks.json"
    tasks.write_text(Path("tests/data/arc/arc_sample.json").read_text())
    watcher = stage.start("watch", *stage.job("wrong", 2), f"tasks.path={tasks}")
    while not any(name.endswith(stage.pod("wrong")) for name in list(stage.world.cloud.nodes)):
        assert watcher.poll() is None, watcher.communicate()
        time.sleep(0.05)
    tasks.unlink()
    _, said = watcher.communicate(timeout=300)
    assert watcher.returncode == 2, said
    assert "error: host" in said
    assert str(tasks) in said


def test_code_by_scp_a_clean_stop_and_what_is_left(stage: Rehearsal, tmp_path: Path) -> None:
    """Without a bucket. `stop` ends the job with what it holds; `gc` deletes a preempted pod; `doctor` is content."""
    folder = tmp_path / "run"
    prompts = [json.dumps({"task_id": str(i), "text": "1 2 3 4 " * 10}) for i in range(10_000)]
    (tmp_path / "tasks.jsonl").write_text("\n".join(prompts))
    tasks = ("tasks.format=jsonl", f"tasks.path={tmp_path / 'tasks.jsonl'}", "cloud.queued=false")
    job = stage.job("plain", 2, *tasks, f"storage.run_dir={folder}")
    findings = json.loads(stage.launch("doctor", *job, "--json")[0])
    assert [finding["check"] for finding in findings if not finding["well"]] == []
    stage.launch("run", *job)
    while len(list(folder.glob("commits/*"))) < 3:
        time.sleep(0.02)
    stopped, said = stage.launch("stop", *job, "--json")
    assert json.loads(stopped) == {"0": "ASKED", "1": "ASKED"}, said
    deadline = time.monotonic() + 60
    while {"stopped"} != {host["phase"] for host in json.loads(stage.launch("status", *job, "--json")[0])["hosts"]}:
        assert time.monotonic() < deadline
    assert 3 <= len(list(folder.glob("commits/*"))) < len(prompts) // PER_BATCH
    stage.world.cloud.preempt(stage.pod("plain"))
    assert [pod["state"] for pod in json.loads(stage.launch("gc", *job, "--json")[0])] == ["PREEMPTED"]
    assert not stage.world.cloud.nodes
