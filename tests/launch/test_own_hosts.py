"""Whole jobs on hosts that the user has started, over real ssh: several slices, then one; nothing is left behind."""

import getpass
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from pod_job.reading.dataset import ActivationDataset
from pod_job.run_folder import layout
from tools.bucket import bucket_available, bucket_server
from tools.fakepod import fakepod_available
from tools.fakepod.hosts import Hosts
from tools.fakepod.lean_python import lean_python
from tools.fakepod.world import free_port, make_key
from tools.tiny_model import write_tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.pod, pytest.mark.timeout(300)]
ROOT = Path(__file__).parent.parent.parent
BUCKET, SLICES, HOSTS, PROMPTS = "rehearsal", ("a", "b"), 2, 44
SECRET = "s3cr3t'\"$(touch stolen)"


@dataclass(frozen=True)
class Machines:
    """Hosts of two slices, each with an sshd of its own, and a bucket; gcloud is a program that must not be run."""

    root: Path
    slices: dict[str, Hosts]
    port: int
    env: dict[str, str]

    def lines(self, name: str) -> list[str]:
        return [f"{getpass.getuser()}@{address}:{self.port}" for address in self.slices[name].addresses]

    def job(self, run: str, hosts_file: Path, *more: str) -> list[str]:
        flags = [f"-i{self.root}/key/id", "-oStrictHostKeyChecking=no", "-oUserKnownHostsFile=/dev/null"]
        return [
            *("experiment=v5e64", f"model.path={self.root}/model", "model.dtype=float32", "tasks=arc_sample"),
            *("extract.layers=[1,3]", "extract.dtype=float32", "extract.seq_len=128", "extract.too_long=tail"),
            *("extract.save_every_n_samples=1", f"storage.run_dir=gs://{BUCKET}/{run}", "parity.samples=0"),
            *(f"storage.compile_cache={self.root}/compiled", "pod.accelerator_type=v4-16", f"pod.hosts={HOSTS}"),
            *(
                "pod.devices_per_host=1",
                f"mesh.data={HOSTS}",
                "mesh.model=1",
                "cloud.shared_folders=[/]",
                "pod.runtime_version=tpu-ubuntu2204-base",
            ),
            *(f"cloud.python={self.root}/python/bin/python", f"pod.hosts_file={hosts_file}", *more),
            f"cloud.ssh_flags=[{','.join(repr(flag) for flag in flags)}]",
        ]

    def start(self, verb: str, *words: str) -> "subprocess.Popen[str]":
        command, pipe = [sys.executable, "-m", "launch", verb, *words], subprocess.PIPE
        return subprocess.Popen(
            command, cwd=ROOT, env=self.env, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True
        )

    def launch(self, verb: str, *words: str, status: int = 0) -> tuple[str, str]:
        process = self.start(verb, *words)
        out, err = process.communicate(timeout=200)
        assert process.returncode == status, f"{verb}: {process.returncode}\n{out}\n{err}"
        return out, err

    def committed(self, run: str) -> int:
        return len(list((self.root / "buckets" / BUCKET / run / layout.COMMITS).glob("*.json")))

    def left_behind(self) -> list[Path | int]:
        """Returns the files that the launcher keeps on hosts, and processes on them."""
        homes = [home for hosts in self.slices.values() for home in hosts.homes]
        processes = [
            pid for hosts in self.slices.values() for worker in range(HOSTS) for pid in hosts.processes(worker)
        ]
        return [path for home in homes for path in home.glob(".pod_job*")] + processes


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory, require: Callable[[bool, str], None]) -> Iterator[Machines]:
    require(fakepod_available() is None, str(fakepod_available()))
    require(bucket_available() is None, str(bucket_available()))
    with started(tmp_path_factory.mktemp("own")) as own:
        yield own


@contextmanager
def started(root: Path) -> Iterator[Machines]:
    write_tiny_model(root / "model", layers=4)
    lean_python(root / "python")
    gcloud, key, port = root / "bin" / "gcloud", make_key(root / "key" / "id"), free_port()
    gcloud.parent.mkdir()
    gcloud.write_text(f"#!/bin/sh\necho $* >>{root}/gcloud.log\nexit 1\n")
    gcloud.chmod(0o755)
    with bucket_server(root / "buckets", BUCKET) as url:
        emulator = {"STORAGE_EMULATOR_HOST": url}
        slices = {}
        for number, name in enumerate(SLICES):
            addresses = [f"127.{os.getpid() % 200 + 1}.{200 + number}.{worker + 1}" for worker in range(HOSTS)]
            env = {
                **emulator,
                **{"JAX_PLATFORMS": "cpu", "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo", "JAX_NUM_CPU_DEVICES": "1"},
                **{"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "PATH": os.environ["PATH"]},
                "JAX_COORDINATOR_BIND_ADDRESS": f"{addresses[0]}:8476",
            }
            slices[name] = Hosts(root / f"slice_{name}", addresses, port, key, env)
        try:
            with ThreadPoolExecutor() as pool:
                list(pool.map(Hosts.start, slices.values()))
            path = f"{gcloud.parent}:{os.environ['PATH']}"
            env = {**os.environ, **emulator, "PYTHONPATH": str(ROOT), "PATH": path, "REHEARSAL_SECRET": SECRET}
            yield Machines(root, slices, port, env)
        finally:
            for hosts in slices.values():
                hosts.stop()
    assert not (root / "gcloud.log").exists()


def test_watch_runs_slices_on_hosts_of_a_file_and_clears_them(machines: Machines, tmp_path: Path) -> None:
    hosts_file = tmp_path / "hosts.txt"
    hosts_file.write_text("".join("\n".join([f"[slice {name}]", *machines.lines(name), ""]) for name in SLICES))
    job = machines.job("slices", hosts_file, "pod.slices=2", "cloud.secrets=[REHEARSAL_SECRET]")
    out, err = machines.launch("watch", *job, "--no-preflight", "--json")
    assert "nothing of the job is left on 4 of 4 hosts" in err
    assert json.loads(out)["complete"]
    assert len(ActivationDataset(str(machines.root / "buckets" / BUCKET / "slices"), layer=1)) == PROMPTS
    assert machines.left_behind() == []
    run = f"gs://{BUCKET}/slices"
    status = json.loads(machines.launch("status", run, "--json")[0])
    assert [one["name"] for one in status["slices"]] == list(SLICES)
    logs = machines.launch("logs", run)[0].splitlines()
    assert {line.split()[0] for line in logs} == {f"{name}/{host:02d}" for name in SLICES for host in range(HOSTS)}
    assert not list(machines.root.rglob("stolen"))


def test_a_host_that_is_lost_is_named_and_the_other_slice_finishes(machines: Machines, tmp_path: Path) -> None:
    hosts_file = tmp_path / "hosts.txt"
    hosts_file.write_text("\n\n".join("\n".join(machines.lines(name)) for name in SLICES))
    job = machines.job("lost", hosts_file, "pod.slices=2", "pod.lease_timeout_s=10")
    watcher = machines.start("watch", *job, "--no-preflight", "--json")
    while machines.committed("lost") < 1:
        assert watcher.poll() is None, watcher.communicate()
        time.sleep(0.05)
    machines.slices["b"].kill(1)
    out, err = watcher.communicate(timeout=200)
    assert watcher.returncode == 2, err
    assert json.loads(out)["complete"]
    assert len(ActivationDataset(str(machines.root / "buckets" / BUCKET / "lost"), layer=1)) == PROMPTS
    *before, error = err.splitlines()
    lost = machines.lines("b")[1]
    assert error.startswith(f"error: pod.hosts_file={hosts_file}: not cleared: {lost} (no answer); ")
    assert any(line.endswith(shlex.join(["pod-job", "down", *job])) for line in before), err
    machines.slices["b"].restart(1)
    machines.launch("down", *job)
    assert machines.left_behind() == []


def test_run_stop_and_down_on_the_hosts_of_one_slice(machines: Machines, tmp_path: Path) -> None:
    hosts_file = tmp_path / "hosts.txt"
    hosts_file.write_text("\n".join(machines.lines("a")))
    prompts = [json.dumps({"task_id": str(i), "text": "1 2 3 4 " * 10}) for i in range(10_000)]
    (tmp_path / "tasks.jsonl").write_text("\n".join(prompts))
    job = machines.job("one", hosts_file, "tasks.format=jsonl", f"tasks.path={tmp_path}/tasks.jsonl")
    assert "end the job, and clear the hosts" in machines.launch("run", *job, "--no-preflight")[0]
    while machines.committed("one") < 3:
        time.sleep(0.1)
    assert "2 ALREADY_RUNNING" in machines.launch("run", *job, "--no-preflight")[1]
    refused = machines.launch("stop", f"gs://{BUCKET}/one", status=2)[1]
    assert "give pod.hosts_file=FILE after it" in refused
    words = [f"gs://{BUCKET}/one", f"pod.hosts_file={hosts_file}", job[-1]]
    assert json.loads(machines.launch("stop", *words, "--json")[0]) == {"0": "ASKED", "1": "ASKED"}
    machines.launch("status", *job, "--follow")
    assert 3 <= machines.committed("one") < len(prompts)
    machines.launch("down", *words)
    assert machines.left_behind() == []

    # In another order than that of the slice's workers.
    turned = tmp_path / "turned.txt"
    turned.write_text("\n".join(reversed(machines.lines("a"))))
    wrong = machines.launch("watch", *machines.job("wrong", turned), "--no-preflight", status=2)[1]
    assert "list a slice's hosts in the order of their workers" in wrong
    assert machines.left_behind() == []
