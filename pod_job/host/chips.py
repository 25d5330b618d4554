"""Frees this host's TPU chips, each of which one process at a time can use, before libtpu finds them busy.

A process that an earlier start of this run left is ended; any other, a job of another run too, is waited for, then
named with the command that ends it. Linux only, as TPU VMs.
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
    """A process that has a device open; `run` is the run folder of the job that it is, None where it is none."""

    pid: int
    command: str
    device: str
    run: str | None


def free_chips(run_dir: str, patterns: Sequence[str] = DEVICES, lock: Path = LOCK, wait_s: float = WAIT_S) -> None:
    """Returns when no process has a device open that matches `patterns`, and libtpu's lock file is gone.

    Args:
        run_dir: the run whose earlier starts are ended.

    Raises:
        JobError: another process still has one open after `wait_s`, or the lock file belongs to another user.
    """
    began = time.monotonic()
    signalled: dict[int, signal.Signals] = {}
    while users := processes_using([device for pattern in patterns for device in sorted(glob.glob(pattern))]):
        waited = time.monotonic() - began
        for user in users:
            signum = signal.SIGTERM if waited < TERM_S else signal.SIGKILL
            if is_run(user, run_dir) and signalled.get(user.pid) is not signum:
                signalled[user.pid] = signum
                log.info("%s to %d, an earlier start that holds %s: %s", signum.name, *_facts(user))
                with suppress(ProcessLookupError):
                    os.kill(user.pid, signum)
        if waited > wait_s:
            user = next((user for user in users if not is_run(user, run_dir)), users[0])
            job = f", a job of the run {user.run}" if user.run else ""
            raise JobError(
                f"{user.device} is held by process {user.pid} ({user.command}){job}; "
                f"end it: kill {user.pid}, then start again"
            )
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
                users.append(ChipProcess(int(entry.name), " ".join(words).strip(), min(opened), _run_of(entry, words)))
    return users


def is_run(process: ChipProcess, run_dir: str) -> bool:
    """Returns True for a job of this run."""
    return process.run is not None and process.run.rstrip("/") == run_dir.rstrip("/")


def _run_of(entry: Path, words: Sequence[str]) -> str | None:
    """Returns the run folder of a job, from the launcher's variable or its own arguments; "" where neither has it."""
    variables = (entry / "environ").read_bytes().decode(errors="replace").split("\0")
    settings = dict(variable.split("=", 1) for variable in variables if "=" in variable)
    if settings.get(environment.RUN):
        return settings[environment.RUN]
    if ("-m", "pod_job") not in itertools.pairwise(words) and environment.ATTEMPT not in settings:
        return None
    given = [word.partition("=")[2] for word in words if word.startswith("storage.run_dir=")]
    return given[-1].strip("'\"") if given else ""


def _facts(process: ChipProcess) -> tuple[int, str, str]:
    return process.pid, process.device, process.command
