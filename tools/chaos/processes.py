"""The processes of one start or one compaction of tools/chaos.py: begun, watched until they end, killed or woken up."""

import multiprocessing
import os
import signal
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

from launch.host_commands import new_attempt
from launch.local import coordinator_address
from pod_job.environment import STORAGE_EMULATOR, local_host
from tools.chaos.host import compaction_main, host_main
from tools.chaos.scenarios import Compaction, Start

HANG_S = 180.0
"""What has not ended by then hangs, which is a failure."""
POLL_S = 0.05
CONTEXT = multiprocessing.get_context("forkserver")


class Running:
    """The processes of `what`."""

    def __init__(self, what: Start | Compaction, processes: Sequence[BaseProcess]) -> None:
        self.what, self.processes = what, processes
        self.began = time.monotonic()
        for process in processes:
            process.start()

    def wait(self) -> str:
        """Until all have ended or one was hit: `finished`, `killed`, `stopped`, or `failed` with its status."""
        while True:
            codes = [process.exitcode for process in self.processes]
            if all(code == 0 for code in codes):
                return "finished"
            if any(code == -signal.SIGKILL for code in codes):
                return self.end("killed")
            if failed := [code for code in codes if code]:
                return self.end(f"failed with {failed[0]}")
            if any(process.pid and state(process.pid) == "T" for process in self.processes):
                return "stopped"
            passed = time.monotonic() - self.began
            if self.what.kill_after_s is not None and passed > self.what.kill_after_s:
                return self.end("killed")
            if passed > HANG_S:
                return self.end("hanging")
            time.sleep(POLL_S)

    def end(self, outcome: str) -> str:
        for process in self.processes:
            process.kill()
            process.join()
        return outcome

    def wake(self) -> str:
        """Lets stopped processes go on."""
        self.began = time.monotonic()
        for process in self.processes:
            if process.pid and process.exitcode is None:
                os.kill(process.pid, signal.SIGCONT)
        return self.wait()


def begin_start(start: Start, overrides: Sequence[str], log: Path) -> Running:
    """A pod; its hosts run the job with these overrides."""
    shape, attempt, coordinator = start.shape, new_attempt(), coordinator_address(0)
    settings = [
        *overrides,
        *(f"pod.hosts={shape.hosts}", f"pod.devices_per_host={shape.devices}", f"sharding={shape.sharding}"),
        *(f"mesh.data={shape.data}", f"mesh.model={shape.model}"),
    ]
    hosts = []
    for host in range(shape.hosts):
        fault = start.fault if host == start.host else None
        env = local_host(host, shape.devices, coordinator, attempt) | emulator()
        hosts.append(CONTEXT.Process(target=host_main, args=(settings, env, fault, log)))
    return Running(start, hosts)


def begin_compaction(what: Compaction, run_dir: str, log: Path) -> Running:
    arguments = (run_dir, what.max_bytes, what.patient, emulator(), what.fault, log)
    return Running(what, [CONTEXT.Process(target=compaction_main, args=arguments)])


def emulator() -> dict[str, str]:
    """What a process has to know of the bucket emulator; it is forked from one that was there before that."""
    return {name: os.environ[name] for name in [STORAGE_EMULATOR] if name in os.environ}


def state(pid: int) -> str:
    """The kernel's letter for what a process does: T is stopped; empty where it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):  # before, or while it was read
        return ""
