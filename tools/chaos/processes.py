"""Processes of one start or one compaction: how they start, are awaited, killed and resumed."""

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
"""Longest run of a process; one that runs longer is killed and counts as a failure."""
POLL_S = 0.05
CONTEXT = multiprocessing.get_context("forkserver")


class Running:
    """Running processes of a start or compaction."""

    def __init__(self, action: Start | Compaction, processes: Sequence[BaseProcess], hang_s: float = HANG_S) -> None:
        self.action, self.processes, self.hang_s = action, processes, hang_s
        self.began = time.monotonic()
        for process in processes:
            process.start()

    def wait(self) -> str:
        """Waits until all end or one is killed or stopped.

        Returns:
            `finished`, `killed`, `stopped`, `hanging`, or `failed with` a status.
        """
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
            if self.action.kill_after_s is not None and passed > self.action.kill_after_s:
                return self.end("killed")
            if passed > self.hang_s:
                return self.end("hanging")
            time.sleep(POLL_S)

    def end(self, outcome: str) -> str:
        """Kills all processes; returns `outcome`."""
        for process in self.processes:
            process.kill()
            process.join()
        return outcome

    def wake(self) -> str:
        """Resumes stopped processes and waits for their end."""
        self.began = time.monotonic()
        for process in self.processes:
            if process.pid and process.exitcode is None:
                os.kill(process.pid, signal.SIGCONT)
        return self.wait()


def begin_start(start: Start, overrides: Sequence[str], log: Path) -> Running:
    """Starts a pod whose hosts run the job with these overrides."""
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


def begin_compaction(compaction: Compaction, run_dir: str, log: Path) -> Running:
    """Starts `merge --compact` of the run."""
    command = [run_dir, "--compact", "--max-bytes", str(compaction.max_bytes)]
    arguments = (command, compaction.patient, emulator(), compaction.fault, log)
    return Running(compaction, [CONTEXT.Process(target=compaction_main, args=arguments)])


def emulator() -> dict[str, str]:
    """Returns the bucket emulator's variable: processes are forked from a server that started before the emulator."""
    return {name: os.environ[name] for name in [STORAGE_EMULATOR] if name in os.environ}


def state(pid: int) -> str:
    """Returns the kernel's letter for the state of a process, T for stopped; empty where it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):  # ended before the read, or during it
        return ""
