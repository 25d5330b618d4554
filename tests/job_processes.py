"""The job in processes of this machine, for tests that start it, disturb it and wait for its end."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from pod_job import environment

PER_BATCH = 8


def overrides(model: Path, run_dir: Path, **changes: Any) -> list[str]:
    values = {
        "model.path": model,
        "model.dtype": "float32",
        "tasks": "arc_sample",
        "extract": "all_tokens",
        "extract.dtype": "float32",
        "extract.seq_len": 512,
        "extract.layers": [1, 3],
        "extract.save_every_n_samples": PER_BATCH,
        "parity.samples": 0,  # the gate has tests of its own
        "storage.run_dir": run_dir,
    }
    return [f"{key}={value}" for key, value in (values | changes).items()]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(arguments: list[str], hosts: int, devices: int, only: list[int] | None = None) -> list[subprocess.Popen[str]]:
    """Starts the job on `hosts` processes of this machine, or on those in `only`."""
    coordinator = f"127.0.0.1:{free_port()}"
    processes = []
    for host in range(hosts) if only is None else only:
        env = os.environ | environment.local_host(host, devices, coordinator, "test")
        command = [sys.executable, "-m", "pod_job", *arguments, f"pod.hosts={hosts}", f"pod.devices_per_host={devices}"]
        processes.append(
            subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
    return processes


def finish(processes: list[subprocess.Popen[str]], status: int = 0) -> str:
    """Waits for all processes, which must end with `status`; returns their output."""
    outputs = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [status] * len(processes), "\n".join(outputs)
    return "\n".join(outputs)
