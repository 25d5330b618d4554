"""The job in processes of this machine, for tests that start it, disturb it and wait for its end.

Each process is forked from one that has imported jax and transformers already: that is half of what a short job takes.
"""

import logging
import multiprocessing
import os
import signal
import socket
import tempfile
from collections.abc import Callable
from functools import cache
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

from pod_job import environment

PER_BATCH = 8
IMPORTED = ["pod_job.job", "transformers.modeling_rope_utils"]


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


class JobProcess:
    """One host of a job, with what `subprocess.Popen` offers; its stdout and stderr go to one file."""

    def __init__(self, arguments: list[str], variables: dict[str, str], change: Callable[[], None]) -> None:
        handle, name = tempfile.mkstemp(prefix="job-")
        os.close(handle)
        self._output = Path(name)
        host = (arguments, dict(os.environ) | variables, name, change)
        self._process = fork_context().Process(target=run_host, args=host)
        self._process.start()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()

    def send_signal(self, number: signal.Signals) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """Waits for the end of the process; returns its output."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            self._process.kill()
            raise TimeoutError(f"the job runs longer than {timeout} s:\n{self._output.read_text()}")
        output = self._output.read_text()
        self._output.unlink(missing_ok=True)
        return output, None


@cache
def fork_context() -> ForkServerContext:
    """Starts the process that hosts are forked from; its NumPy has one BLAS thread, as that of a host."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    before = os.environ.get(environment.BLAS_THREADS)
    os.environ[environment.BLAS_THREADS] = "1"
    forkserver.ensure_running()
    if before is None:
        del os.environ[environment.BLAS_THREADS]
    else:
        os.environ[environment.BLAS_THREADS] = before
    return context


def as_shipped() -> None:
    """Changes nothing."""


def run_host(arguments: list[str], variables: dict[str, str], output: str, change: Callable[[], None]) -> None:
    """Runs `python -m pod_job` in this process, which has none of its environment variables yet, after `change`."""
    import jax

    from pod_job.__main__ import run_to_exit

    with open(output, "wb") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    logging.getLogger().handlers.clear()  # made by what is imported; the job makes its own
    os.environ.clear()
    os.environ.update(variables)
    jax.config.update("jax_num_cpu_devices", int(variables["JAX_NUM_CPU_DEVICES"]))
    jax.config.update("jax_cpu_collectives_implementation", variables["JAX_CPU_COLLECTIVES_IMPLEMENTATION"])
    change()
    run_to_exit(arguments)
    jax.distributed.shutdown()  # which jax does at the end of a process that was not forked


def start(
    arguments: list[str],
    hosts: int,
    devices: int,
    only: list[int] | None = None,
    change: Callable[[], None] = as_shipped,
) -> list[JobProcess]:
    """Starts the job on `hosts` processes of this machine, or on those in `only`; `change` may spoil the program."""
    coordinator = f"127.0.0.1:{free_port()}"
    size = [f"pod.hosts={hosts}", f"pod.devices_per_host={devices}"]
    return [
        JobProcess([*arguments, *size], environment.local_host(host, devices, coordinator, "test"), change)
        for host in (range(hosts) if only is None else only)
    ]


def finish(processes: list[JobProcess], status: int = 0) -> str:
    """Waits for all processes, which must end with `status`; returns their output."""
    outputs = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [status] * len(processes), "\n".join(outputs)
    return "\n".join(outputs)
