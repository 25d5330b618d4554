"""Rehearses slices in a simulated cloud: `python -m tools.fleet_rehearsal ROOT`; minutes.

The real `pod-job watch`, gcloud, ssh and sshd keep 4 slices of 2 hosts at work in 2 zones on one run in a bucket. Slice
1 is preempted without notice once a fifth is done, slice 2 gets its pod late, slice 3 never. Then one slice does the
same run undisturbed. Prints the times, the share of tokens that were computed twice, and whether the activation files
are the same, byte for byte: each prompt has a row to itself here, so that its place in a step does not matter.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pod_job.run_folder import layout
from pod_job.run_folder.slices import report_folder, slice_names
from pod_job.run_folder.status import HostStatus, read_status
from pod_job.storage.open import open_folder
from tools.bucket import bucket_server
from tools.fakepod import World, fakepod
from tools.fakepod.cloud import CAPACITY, Record
from tools.fakepod.lean_python import lean_python
from tools.tiny_model import write_tiny_model

BUCKET, POD, HOSTS, SLICES = "rehearsal", "fleet", 2, 4
ZONES = ("us-west4-a", "us-west4-b")
PER_BATCH = 40
LATE_S = 30.0
"""From the start until slice 2 can have a pod."""
WORDS = ("the", "cat", "sat", "on", "mats", "and", "then", "left", "again")


@dataclass
class Sampled:
    """Latest counters of every host in every start, seen as they come."""

    statuses: dict[tuple[str, str, int], HostStatus] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        return sum(status.tokens for status in self.statuses.values())

    def look(self, run: Path) -> None:
        """Reads the statuses of all slices."""
        folder = open_folder(run)
        for name in slice_names(folder):
            for host in range(HOSTS):
                status = read_status(report_folder(folder, name), host)
                if status is not None:
                    self.statuses[name, status.attempt, host] = status


@dataclass(frozen=True)
class Stage:
    """Cloud, bucket and inputs of the rehearsal."""

    root: Path
    world: World
    python: Path

    def job(self, run: str, slices: int) -> list[str]:
        """Returns the overrides of a run."""
        return [
            *("experiment=v5e64", f"model.path={self.root}/model", "model.dtype=float32", "parity.samples=0"),
            *(f"tasks.path={self.root}/tasks.jsonl", "tasks.format=jsonl", "extract.dtype=float32"),
            *("extract.layers=[1,3]", "extract.seq_len=64", "extract.too_long=tail", "extract.prompts_per_row=1"),
            *(f"extract.save_every_n_samples={PER_BATCH}", f"storage.run_dir=gs://{BUCKET}/{run}"),
            *(f"storage.compile_cache={self.root}/compiled", "extract.rows_per_device=8"),
            *("pod.accelerator_type=v4-16", f"pod.hosts={HOSTS}", "pod.devices_per_host=1", f"mesh.data={HOSTS}"),
            *("mesh.model=1", "pod.runtime_version=tpu-ubuntu2204-base", f"pod.slices={slices}", f"cloud.name={POD}"),
            *(f"cloud.zones=[{','.join(ZONES)}]", "cloud.internal_ip=true", f"cloud.python={self.python}"),
            *(f"cloud.ssh_flags=['-oPort={self.world.ssh_port}']", "cloud.shared_folders=[/]", "cloud.rounds=99"),
        ]

    def watch(self, run: str, slices: int) -> "subprocess.Popen[str]":
        env = {**os.environ, **self.world.env}
        command = [sys.executable, "-m", "launch", "watch", *self.job(run, slices), "--no-preflight"]
        return subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, text=True)

    def folder(self, run: str) -> Path:
        """Returns a run folder as the bucket's server stores it."""
        return self.root / "buckets" / BUCKET / run


@contextmanager
def stage(root: Path, prompts: int) -> Iterator[Stage]:
    """Starts cloud and bucket, and ends them when the context is left."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    write_tiny_model(root / "model", layers=4)
    rng = random.Random(0)
    lines = ({"id": str(i), "text": " ".join(rng.choices(WORDS, k=rng.randint(8, 40)))} for i in range(prompts))
    (root / "tasks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    hosts = {"JAX_NUM_CPU_DEVICES": "1"}
    with bucket_server(root / "buckets", BUCKET) as url, fakepod(root / "cloud", hosts, url) as world:
        yield Stage(root, world, lean_python(root / "python"))


def limit_capacity(world: World, admitted: Mapping[str, threading.Event]) -> None:
    """Has the cloud refuse pods of these names for want of capacity until their event is set."""
    create = world.cloud.create_queued

    def create_queued(parent: str, queued_id: str, queued: Record) -> Record:
        with world.cloud.lock:
            if queued_id in admitted and not admitted[queued_id].is_set():
                world.cloud.refuse(parent.rpartition("/")[2], CAPACITY)
            return create(parent, queued_id, queued)

    world.cloud.create_queued = create_queued


def disturbed(stage: Stage, batches: int) -> tuple[float, Sampled, int]:
    """Runs the slices; returns the seconds from the first batch, the counters of all starts, and takes from 2 on."""
    late, never = threading.Event(), threading.Event()
    limit_capacity(stage.world, {f"{POD}-2": late, f"{POD}-3": never})
    run, sampled, preempted, first = stage.folder("slices"), Sampled(), False, 0.0
    watcher, began = stage.watch("slices", SLICES), time.monotonic()
    while watcher.poll() is None:
        done = len(list((run / layout.COMMITS).glob("*.json")))
        first = first or (time.monotonic() if done else 0.0)
        if time.monotonic() - began > LATE_S:
            late.set()
        if not preempted and done > batches / 5:
            preempted = True
            sampled.look(run)
            stage.world.cloud.preempt(f"{POD}-1")
            print(f"slice 1 is preempted after {done} of {batches} batches", file=sys.stderr, flush=True)
        sampled.look(run)
        time.sleep(0.3)
    assert watcher.returncode == 0, watcher.returncode
    assert not stage.world.cloud.nodes
    assert not stage.world.cloud.queued
    taken_over = [path for path in (run / layout.LEASES).glob("block_*") if not path.name.endswith("take_01.json")]
    return time.monotonic() - first, sampled, len(taken_over)


def undisturbed(stage: Stage) -> Sampled:
    """Runs the same on one slice; returns its counters."""
    watcher = stage.watch("whole", 1)
    assert watcher.wait() == 0
    folder, sampled = open_folder(stage.folder("whole")), Sampled()
    for host in range(HOSTS):
        status = read_status(folder, host)
        assert status is not None
        sampled.statuses["", "", host] = status
    return sampled


def differing(stage: Stage) -> list[str]:
    """Returns the activation files that are not the same in both runs."""
    both = [
        {path.name: path.read_bytes() for path in (stage.folder(run) / layout.ACTIVATIONS).glob("*.safetensors")}
        for run in ("slices", "whole")
    ]
    return [name for name in both[0].keys() | both[1].keys() if both[0].get(name) != both[1].get(name)]


def main() -> int:
    """Runs the command line; returns 0 if the result is the same."""
    parser = argparse.ArgumentParser(prog="python -m tools.fleet_rehearsal", description=__doc__)
    parser.add_argument("root", type=Path, help="folder for buckets, homes and logs; it is emptied first")
    parser.add_argument("--prompts", type=int, default=20_000)
    options = parser.parse_args()
    batches = -(-options.prompts // PER_BATCH)
    with stage(options.root.absolute(), options.prompts) as here:
        seconds, sampled, taken_over = disturbed(here, batches)
        for (name, attempt, host), status in sorted(sampled.statuses.items()):
            print(
                f"slice {name} {attempt} host {host}: {status.phase}, {status.batches} batches, {status.tokens} tokens"
            )
        whole = undisturbed(here)
        twice = sampled.tokens / whole.tokens - 1
        print(f"{batches} batches in {seconds:.0f} s from the first on, {taken_over} blocks taken over")
        print(f"{sampled.tokens:,} tokens computed, {whole.tokens:,} needed: {twice:.2%} twice")
        others = differing(here)
        print(f"{len(others)} activation files differ from those of the undisturbed run")
    return 1 if others else 0


if __name__ == "__main__":
    sys.exit(main())
