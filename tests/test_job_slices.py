"""Slices of unlike shapes in real processes: one is killed, the others do its batches, and the rows are the same."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from job_processes import finish, free_port, overrides, start

from pod_job import environment
from pod_job.reading.dataset import ActivationDataset
from pod_job.run_folder import layout
from pod_job.run_folder.leases import LEASE
from tools.tiny_model import write_tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.pod]
PROMPTS, PER_BATCH = 800, 8


def start_slice(arguments: list[str], name: str, hosts: int) -> list[subprocess.Popen[str]]:
    coordinator = f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "pod_job", *arguments, f"pod.slice={name}", f"pod.hosts={hosts}"]
    return [
        subprocess.Popen(
            command,
            env=os.environ | environment.local_host(host, 1, coordinator, f"start-of-{name}"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for host in range(hosts)
    ]


def rows(run_dir: Path) -> dict[int, np.ndarray]:
    """Returns the vector of every prompt; fails where one is stored twice."""
    dataset = ActivationDataset(str(run_dir), layer=3)
    tasks = dataset.rows(slice(None))["task_id"].tolist()
    assert len(set(tasks)) == len(tasks) == PROMPTS
    return {task: dataset[number] for number, task in enumerate(tasks)}


def test_slices_of_any_shape_share_a_run_through_the_loss_of_one(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model", layers=4)
    tasks = tmp_path / "tasks.jsonl"
    texts = [" ".join(["the cat sat"] * (2 + number % 3)) for number in range(PROMPTS)]
    tasks.write_text("".join(json.dumps({"id": f"{n}", "text": text}) + "\n" for n, text in enumerate(texts)))
    changes = {
        **{"tasks": "arc", "tasks.path": tasks, "tasks.format": "jsonl", "extract": "last_token"},
        **{"extract.seq_len": 48, "extract.save_every_n_samples": PER_BATCH, "pod.lease_timeout_s": 5},
    }
    whole = start(overrides(model, tmp_path / "whole", **changes), 1, 1)
    run = tmp_path / "slices"
    arguments = overrides(model, run, **changes, **{"extract.prompts_per_row": 1, "pod.slices": 3})
    wide = start_slice([*arguments, "mesh.model=2", "sharding=tensor"], "wide", hosts=2)  # with one feeder
    killed, other = start_slice(arguments, "killed", hosts=1), start_slice(arguments, "other", hosts=1)
    held = set()
    while not held and killed[0].poll() is None:
        time.sleep(0.05)
        held = {path for path in run.glob("leases/block_*") if '"killed"' in path.read_text()}
    killed[0].kill()
    killed[0].communicate()
    finish(wide + other + whole)
    assert json.loads((run / layout.METADATA).read_text())["complete"] is True
    names = [f"{layout.LEASES}{path.name}" for path in run.glob("leases/*")]
    takes = [lease for name in names if (lease := LEASE.fullmatch(name))]
    assert held
    assert {path.name.replace("take_01", "take_02") for path in held} <= {path.name for path in run.glob("leases/*")}
    assert len({lease[1] for lease in takes}) == PROMPTS // PER_BATCH + 1  # every block, and the merge
    expected = rows(tmp_path / "whole")
    for task, vector in rows(run).items():
        np.testing.assert_allclose(vector, expected[task], rtol=1e-5, atol=1e-5)
