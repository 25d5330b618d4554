"""Frees this host's TPU chips, each of which one process at a time can use, before libtpu finds them busy.

A process that an earlier start of this job left is ended; any other is waited for, then named. Linux only, as TPU VMs.
"""

import glob
import itertools
import logging
import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pod_job import environment
from pod_job.errors import JobError

DEVICES = ("/dev/vfio/[0-9]*", "/dev/accel[0-9]*")  # v5e and later; v4 and earlier
LOCK = Path("/tmp/libtpu_lockfile")
WAIT_S = 40.0
TERM_S = 25.0  # from SIGTERM to SIGKILL for an earlier job, which commits the batches it holds
POLL_S = 0.2

log = logging.getLogger("pod_job")


@dataclass(frozen=True)
class ChipProcess:
    """A process that has a device open. `is_job`: it is a job of this project."""

    pid: int
    command: str
    device: str
    is_job: bool


def free_chips(patterns: Sequence[str] = DEVICES, lock: Path = LOCK, wait_s: float = WAIT_S) -> None:
    """Returns when no process has a device open that matches `patterns`, and libtpu's lock file is gone.

    Raises:
        JobError: another process still has one open after `wait_s`, or the lock file belongs to another user.
    """
    began = time.monotonic()
    signalled: dict[int, signal.Signals] = {}
    while users := processes_using([device for pattern in patterns for device in sorted(glob.glob(pattern))]):
        waited = time.monotonic() - began
        for user in users:
            signum = signal.SIGTERM if waited < TERM_S else signal.SIGKILL
            if user.is_job and signalled.get(user.pid) is not signum:
                signalled[user.pid] = signum
                log.info("%s to %d, an earlier job that holds %s: %s", signum.name, *_facts(user))
                with suppress(ProcessLookupError):
                    os.kill(user.pid, signum)
        if waited > wait_s:
            pid, device, command = _facts(users[0])
            raise JobError(f"{device} is held by process {pid} ({command}); end it: kill {pid}, then start again")
        time.sleep(POLL_S)
    # Only now: while a process has a chip open, the lock file keeps others off.
    try:
        lock.unlink(missing_ok=True)
    except PermissionError as error:
        raise JobError(
            f"{lock} belongs to user {lock.stat().st_uid}; see who uses the TPU (sudo lsof -w {' '.join(DEVICES)}), "
            f"then sudo rm {lock}"
        ) from error


def processes_using(devices: Sequence[str], proc: Path = Path("/proc")) -> list[ChipProcess]:
    """Returns the other processes that have one of the devices open, as far as this user may look."""
    wanted = {os.path.realpath(device) for device in devices}
    users = []
    for entry in proc.glob("[0-9]*") if wanted else []:
        if int(entry.name) == os.getpid():
            continue
        with suppress(OSError):  # ended meanwhile, or another user's
            opened = {os.readlink(link) for link in (entry / "fd").iterdir()} & wanted
            if opened:
                words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                users.append(ChipProcess(int(entry.name), " ".join(words).strip(), min(opened), _is_job(entry, words)))
    return users


def _is_job(entry: Path, words: Sequence[str]) -> bool:
    by_launcher = f"{environment.ATTEMPT}=".encode() in (entry / "environ").read_bytes()
    return by_launcher or ("-m", "pod_job") in itertools.pairwise(words)


def _facts(process: ChipProcess) -> tuple[int, str, str]:
    return process.pid, process.device, process.command
