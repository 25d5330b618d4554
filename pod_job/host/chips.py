"""A TPU chip belongs to one process at a time: whoever holds this host's chips is found before libtpu finds them busy.

What an earlier start of this job left is ended; anybody else is waited for, then named. Linux only, as TPU VMs are.
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
TERM_S = 25.0  # from SIGTERM to SIGKILL for a job of ours, which commits what it holds
POLL_S = 0.2

log = logging.getLogger("pod_job")


@dataclass(frozen=True)
class ChipProcess:
    """A process that has a device open; `ours`: it is a job of this project."""

    pid: int
    command: str
    device: str
    ours: bool


def free_chips(patterns: Sequence[str] = DEVICES, lock: Path = LOCK, wait_s: float = WAIT_S) -> None:
    """Returns when nobody holds a device that matches `patterns`, and libtpu's lock file is gone.

    Raises:
        JobError: somebody else still holds one after `wait_s`, or the lock file belongs to another user.
    """
    began = time.monotonic()
    signalled: dict[int, signal.Signals] = {}
    while holders := processes_using([device for pattern in patterns for device in sorted(glob.glob(pattern))]):
        waited = time.monotonic() - began
        for holder in holders:
            signum = signal.SIGTERM if waited < TERM_S else signal.SIGKILL
            if holder.ours and signalled.get(holder.pid) is not signum:
                signalled[holder.pid] = signum
                log.info("%s to %d, an earlier job that holds %s: %s", signum.name, *_facts(holder))
                with suppress(ProcessLookupError):
                    os.kill(holder.pid, signum)
        if waited > wait_s:
            pid, device, command = _facts(holders[0])
            raise JobError(f"{device} is held by process {pid} ({command}); end it: kill {pid}, then start again")
        time.sleep(POLL_S)
    # Only now: while a process holds a chip, the lock file is what keeps others off.
    try:
        lock.unlink(missing_ok=True)
    except PermissionError as error:
        raise JobError(
            f"{lock} belongs to user {lock.stat().st_uid}; see who uses the TPU (sudo lsof -w {' '.join(DEVICES)}), "
            f"then sudo rm {lock}"
        ) from error


def processes_using(devices: Sequence[str], proc: Path = Path("/proc")) -> list[ChipProcess]:
    """The other processes that have one of the devices open, as far as this user may look."""
    wanted = {os.path.realpath(device) for device in devices}
    found = []
    for entry in proc.glob("[0-9]*") if wanted else []:
        if int(entry.name) == os.getpid():
            continue
        with suppress(OSError):  # ended meanwhile, or another user's
            opened = {os.readlink(link) for link in (entry / "fd").iterdir()} & wanted
            if opened:
                words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                found.append(ChipProcess(int(entry.name), " ".join(words).strip(), min(opened), _is_ours(entry, words)))
    return found


def _is_ours(entry: Path, words: Sequence[str]) -> bool:
    by_launcher = f"{environment.ATTEMPT}=".encode() in (entry / "environ").read_bytes()
    return by_launcher or ("-m", "pod_job") in itertools.pairwise(words)


def _facts(holder: ChipProcess) -> tuple[int, str, str]:
    return holder.pid, holder.device, holder.command
