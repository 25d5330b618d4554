"""Whole jobs on simulated pods, driven by the real gcloud over real ssh: started, watched, disturbed, finished.

First a calm run on 16 workers, then scenes on pods of four, some at once, since half of a scene is waiting.
"""

import json
import math
import re
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from rehearsal import BUCKET, HANGS_S, OTHER_ZONE, PER_BATCH, PROMPTS, ROOT, ZONE, Rehearsal, rehearsal, secret_seen

from launch.cloud.observe import SILENT_S
from pod_job.checking.reference import BUILT_IN, SHIPPED, torch_installed
from pod_job.config.load import quoted
from pod_job.reading.dataset import ActivationDataset
from pod_job.run_folder.layout import REFERENCE
from pod_job.run_folder.parity import read_all_parity
from pod_job.storage.open import open_folder
from tools.bucket import bucket_available
from tools.fakepod import fakepod_available
from tools.fakepod.cloud import CAPACITY

pytestmark = [pytest.mark.slow, pytest.mark.pod, pytest.mark.timeout(2 * HANGS_S)]
SECRET = "s3cr3t'\"$(touch stolen)"
HOSTILE = "a b 'c' $(touch stolen) `touch stolen`; touch stolen # \\ \"d\"\ntouch stolen"
HOSTS = 4
BATCHES = 11
ONE_EACH = "extract.save_every_n_samples=1"


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, require: Callable[[bool, str], None]) -> Iterator[Rehearsal]:
    require(fakepod_available() is None, str(fakepod_available()))
    require(bucket_available() is None, str(bucket_available()))
    with rehearsal(tmp_path_factory.mktemp("rehearsal")) as stage:
        yield stage


def test_run_status_logs_down(stage: Rehearsal, capfd: pytest.CaptureFixture[str]) -> None:
    """16 workers, from nothing. The first zone has no capacity, and an ssh breaks during the start.

    Model and tasks are uploaded, as workers share no folder; the reference comes with the run: they have no torch.
    """
    hosts = 16
    tasks = stage.root / "own tasks" / "tasks.json"
    tasks.parent.mkdir()
    tasks.write_bytes((ROOT / "tests/data/arc/arc_sample.json").read_bytes())
    own = ["cloud.shared_folders=[]", f"tasks.path={quoted(str(tasks))}"]
    job = stage.job("calm", hosts, f"model.revision={quoted(HOSTILE)}", "parity.send_reference=true", *own)
    stage.world.cloud.refuse(ZONE, CAPACITY)
    began = time.time()
    starter = stage.start("run", *job, "--json")
    machines = stage.wait_for_hosts("calm")
    machines.drop_next_login(2)
    out, said = starter.communicate(timeout=HANGS_S)
    assert starter.returncode == 0, said
    assert f"{ZONE}: {CAPACITY}" in said
    assert f"tasks.path={tasks}: 0.00 GB uploaded to gs://{BUCKET}/pod-job-uploads/" in said
    assert f"model.path={stage.model}: 0.00 GB uploaded" in said
    assert list((stage.root / "buckets" / BUCKET / "pod-job-uploads").glob("*/model/model.safetensors"))
    assert torch_installed() == ("by Hugging Face's model in" in said) == (stage.folder("calm") / REFERENCE).is_file()
    assert stage.world.cloud.created == [ZONE, OTHER_ZONE]
    assert json.loads(out)["hosts"] == hosts
    assert [len(list(home.glob(".pod_job/attempts/*"))) for home in machines.homes] == [1] * hosts
    assert not (machines.homes[2] / "drop").exists()
    first = stage.wait_for_records("calm", 1) - began

    stage.launch("status", *job, "--follow")
    status = json.loads(stage.launch("status", *job, "--json")[0])
    assert (status["batches_done"], status["batches"]) == (BATCHES, BATCHES)
    assert [(pod["state"], pod["health"]) for pod in status["pods"]] == [("READY", "HEALTHY")]
    assert status["cost_so_far"] > 0
    assert "READY, 16 workers" in stage.launch("up", *job)[0]
    stage.launch("down", *job)
    assert not stage.world.cloud.nodes
    assert not stage.world.cloud.queued
    assert len(ActivationDataset(str(stage.folder("calm")), layer=1)) == PROMPTS
    [parity] = read_all_parity(open_folder(stage.folder("calm")))
    assert (parity.reference, parity.passed) == (SHIPPED if torch_installed() else BUILT_IN, True)
    assert [host["phase"] for host in status["hosts"]] == ["done"] * hosts
    logs = stage.launch("logs", *job)[0].splitlines()
    assert {int(line[:2]) for line in logs if line.endswith("INFO done")} == set(range(hosts))
    assert [line[3:26] for line in logs] == sorted(line[3:26] for line in logs)
    assert not list(stage.root.rglob("stolen"))
    with capfd.disabled():
        print(f"\nfrom `launch run` with no pod to the first committed batch, {hosts} workers: {first:.1f} s")


def stormy(stage: Rehearsal, tmp_path: Path) -> str:
    """The pod is taken away in mid-run, and so is the watcher, a unit of systemd: it comes back at other addresses."""
    job = stage.job("stormy", HOSTS, ONE_EACH)
    unit = stage.unit(tmp_path, job)
    watcher = unit.start(stage.variables_of_a_vm)
    stage.wait_for_records("stormy", 1, watcher)
    watcher.kill()
    watcher.communicate()
    assert unit.starts_again(watcher.returncode)
    addresses = stage.hosts("stormy").addresses
    stage.world.cloud.preempt(stage.pod("stormy"))
    preempted = time.time()
    watcher = unit.start(stage.variables_of_a_vm)
    while set(stage.wait_for_hosts("stormy").addresses) & set(addresses):
        time.sleep(0.05)
    before = stage.records("stormy")
    assert before < PROMPTS
    again = stage.wait_for_records("stormy", before + 1, watcher) - preempted
    out, said = watcher.communicate(timeout=HANGS_S)
    assert watcher.returncode == 0, said
    assert re.search(r"^metadata +gs://.*/metadata.json$", out, re.MULTILINE)
    assert not unit.starts_again(watcher.returncode)
    status = json.loads(stage.launch("status", *job, "--json")[0])
    assert (status["batches_done"], status["batches"]) == (PROMPTS, PROMPTS)
    assert len(status["pod_hours"]) == 2  # what both have cost
    return f"from the preemption to the next committed batch: {again:.1f} s"


def killed(stage: Rehearsal, tmp_path: Path) -> None:
    """A worker dies while the watcher's machine is asleep."""
    watcher = stage.start("watch", *stage.job("killed", HOSTS, ONE_EACH), "--json")
    stage.wait_for_records("killed", 1, watcher)
    watcher.send_signal(signal.SIGSTOP)
    stage.hosts("killed").signal(1, signal.SIGKILL)
    time.sleep(SILENT_S + 5)
    watcher.send_signal(signal.SIGCONT)
    out, said = watcher.communicate(timeout=HANGS_S)
    assert watcher.returncode == 0, said
    assert "host 1: ended by SIGKILL" in said
    assert "1 of 2 cloud.failures used" in said
    assert json.loads(out)["complete"]


def hung(stage: Rehearsal, tmp_path: Path) -> None:
    """Before it, ssh to worker 2 answers late, and to all workers for a while; nothing is replaced for that."""
    stage.world.ssh_delay_s[stage.pod("hung")] = {0: 8.0, 1: 8.0, 2: 25.0, 3: 8.0}
    watcher = stage.start("watch", *stage.job("hung", HOSTS, ONE_EACH), "--json")
    stage.wait_for_records("hung", 1, watcher)
    stage.signal_job("hung", 1, signal.SIGSTOP)
    out, said = watcher.communicate(timeout=HANGS_S)
    assert watcher.returncode == 0, said
    assert "host 1: stopped answering" in said
    assert "bad_machines" not in said
    assert len(stage.commands_of(stage.pod("hung"), "create")) == 1
    assert json.loads(out)["complete"]


def bad_machine(stage: Rehearsal, tmp_path: Path) -> None:
    """libtpu, the real one, finds no chip on any worker: the pod is replaced, within its budget."""
    if (libtpu := find_spec("libtpu")) is None or libtpu.origin is None:
        pytest.skip("libtpu (pip install .[preflight])")
    job = stage.job("bad", HOSTS, "cloud.bad_machines=1", "cloud.secrets=[JAX_PLATFORMS,TPU_LIBRARY_PATH]")
    library = str(Path(libtpu.origin).parent / "libtpu.so")
    watcher = stage.start("watch", *job, JAX_PLATFORMS="tpu", TPU_LIBRARY_PATH=library)
    _, said = watcher.communicate(timeout=HANGS_S)
    assert watcher.returncode == 1, said
    assert "2 of 1 cloud.bad_machines used" in said
    # All workers are on one machine here: libtpu finds no chip, or another worker with the lock on looking for one.
    assert any(cause in said.split("error: ")[-1] for cause in ("device found", "libtpu multi-process lockfile"))
    creates = [argv for argv in stage.commands() if {"create", stage.pod("bad")} <= set(argv)]
    assert len(creates) == 2


def absent(stage: Rehearsal, tmp_path: Path) -> None:
    """Worker 1's job dies whenever it starts: the others say who is missing before jax gives up."""
    job = stage.job("absent", HOSTS, "pod.arrival_timeout_s=15", "cloud.failures=0")
    watcher = stage.start("watch", *job)
    while watcher.poll() is None:
        stage.signal_job("absent", 1, signal.SIGKILL)
        time.sleep(0.1)
    _, said = watcher.communicate()
    assert watcher.returncode in (1, 2), said
    assert "host 1" in said.split("error: ")[-1]


def unreachable(stage: Rehearsal, tmp_path: Path) -> None:
    """Worker 1's machine never comes up: the pod is replaced, though it cannot be deleted at once."""
    pod, cloud = stage.pod("unreachable"), stage.world.cloud
    stage.world.ssh_delay_s[pod] = {1: math.inf}
    cloud.refuse_deletion(pod, math.inf)
    watcher = stage.start("watch", *stage.job("unreachable", HOSTS, "cloud.bad_machines=1"), "--json")
    first = stage.wait_for_hosts("unreachable")
    del stage.world.ssh_delay_s[pod]
    deadline = time.monotonic() + HANGS_S
    while pod not in cloud.refused_deletions:
        assert watcher.poll() is None, watcher.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    cloud.refuse_deletion(pod, 0)
    out, printed = watcher.communicate(timeout=HANGS_S)
    assert watcher.returncode == 0, printed
    assert "host 1: cannot be reached over ssh; 1 of 1 cloud.bad_machines used" in printed
    assert "cannot be deleted now: " in printed
    assert json.loads(out)["complete"]
    assert not list(first.homes[0].glob(".pod_job/attempts/*"))


def wrong(stage: Rehearsal, tmp_path: Path) -> None:
    """A task file at a path that only this machine has."""
    tasks = tmp_path / "tasks.json"
    tasks.write_text(Path("tests/data/arc/arc_sample.json").read_text())
    watcher = stage.start("watch", *stage.job("wrong", HOSTS), f"tasks.path={tasks}")
    while not any(name.endswith(stage.pod("wrong")) for name in list(stage.world.cloud.nodes)):
        assert watcher.poll() is None, watcher.communicate()
        time.sleep(0.05)
    tasks.unlink()
    _, said = watcher.communicate(timeout=HANGS_S)
    assert watcher.returncode == 2, said
    assert "error: host" in said
    assert str(tasks) in said


def plain(stage: Rehearsal, tmp_path: Path) -> None:
    """Without a bucket, in a folder of a hostile name, with a secret on every host. `stop` ends the job with what it
    holds; `gc` deletes a preempted pod; `doctor` is content.
    """
    folder = tmp_path / HOSTILE.replace("/", "")
    prompts = [json.dumps({"task_id": str(i), "text": "1 2 3 4 " * 10}) for i in range(10_000)]
    (tmp_path / "tasks.jsonl").write_text("\n".join(prompts))
    tasks = ("tasks.format=jsonl", f"tasks.path={tmp_path / 'tasks.jsonl'}", "cloud.queued=false")
    secret = ("cloud.secrets=[REHEARSAL_SECRET]", "+cloud.labels.team=sae")
    job = stage.job("plain", HOSTS, *tasks, *secret, f"storage.run_dir={quoted(str(folder))}")
    findings = json.loads(stage.launch("doctor", *job, "--json", REHEARSAL_SECRET=SECRET)[0])
    assert [finding for finding in findings if not finding["well"]] == []
    stage.launch("run", *job, REHEARSAL_SECRET=SECRET)
    deadline = time.monotonic() + HANGS_S
    while len(list(folder.glob("commits/*"))) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    machines = stage.hosts("plain")
    for worker in range(HOSTS):
        (pid,) = machines.processes(worker, b"python")
        assert SECRET.encode() in Path(f"/proc/{pid}/environ").read_bytes()  # it has arrived
        for each in machines.processes(worker):
            assert SECRET.encode() not in Path(f"/proc/{each}/cmdline").read_bytes()
    stopped, said = stage.launch("stop", *job, "--json")
    assert json.loads(stopped) == {str(worker): "ASKED" for worker in range(HOSTS)}, said
    deadline = time.monotonic() + HANGS_S
    while {"stopped"} != {host["phase"] for host in json.loads(stage.launch("status", *job, "--json")[0])["hosts"]}:
        assert time.monotonic() < deadline
    assert 3 <= len(list(folder.glob("commits/*"))) < len(prompts) // PER_BATCH
    stage.world.cloud.preempt(stage.pod("plain"))
    cleared = {pod["name"]: pod for pod in json.loads(stage.launch("gc", *job, "--json")[0])}[stage.pod("plain")]
    assert (cleared["state"], cleared["deleted"]) == ("PREEMPTED", True)
    # Every argv of gcloud, request of the API, metadata value, log, status and file of workstation, hosts and bucket.
    for path in ("commands.log", "cloud/api.log"):
        assert "pod-plain" in (stage.root / path).read_text()
    assert secret_seen([stage.root, tmp_path], SECRET) == []
    assert not [path for place in (stage.root, tmp_path, Path()) for path in place.glob("**/stolen")]


SCENES = (stormy, killed, hung, bad_machine, absent, unreachable, wrong, plain)
AT_ONCE = 4


@pytest.fixture(scope="module")
def played(stage: Rehearsal, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[str | None]]]:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {scene.__name__: pool.submit(scene, stage, tmp_path_factory.mktemp(scene.__name__)) for scene in SCENES}


@pytest.mark.parametrize("scene", [scene.__name__ for scene in SCENES])
def test_scene(played: dict[str, Future[str | None]], scene: str, capfd: pytest.CaptureFixture[str]) -> None:
    said = played[scene].result()
    if said:
        with capfd.disabled():
            print(f"\n{said}")


def test_a_stormy_run_leaves_what_a_calm_one_does_and_nothing_costs_money(
    stage: Rehearsal, played: dict[str, Future[str | None]]
) -> None:
    for future in played.values():
        future.exception()
    calm, stormy = (ActivationDataset(str(stage.folder(run)), layer=3) for run in ("calm", "stormy"))
    assert calm.rows(slice(None))["task_id"].tolist() == stormy.rows(slice(None))["task_id"].tolist()
    np.testing.assert_allclose(stormy[:], calm[:], rtol=1e-5, atol=1e-5)
    assert not stage.world.cloud.nodes
    assert not stage.world.cloud.queued
