"""Ends processes whose parent was killed. Contexts end what they started when they are left; SIGKILL leaves none.

`supervise` and `supervise_marked` register processes with a small process of their own: when the pipe from this process
breaks, which it does however this process ends, it kills what is registered.
"""

import atexit
import contextlib
import functools
import os
import signal
import subprocess
import sys
from pathlib import Path


def supervise(pid: int) -> None:
    """Registers the process group `pid`: it is killed when this process has ended, unless it was released."""
    _send(f"group {pid}")


def release(pid: int) -> None:
    """Removes a group that has ended by itself: its number may come to belong to another."""
    _send(f"release {pid}")


def supervise_marked(setting: str) -> None:
    """Registers every process with `setting` (NAME=value) in its environment. Linux only."""
    _send(f"marked {setting}")


def processes_marked(setting: str) -> list[int]:
    """Returns the processes with `setting` in their environment, as far as this user may look."""
    wanted, pids = setting.encode(), []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # ended meanwhile, or another user's
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                pids.append(int(entry.name))
    return pids


def _send(line: str) -> None:
    pipe = _supervisor(os.getpid()).stdin
    assert pipe is not None
    pipe.write(line.encode() + b"\n")
    pipe.flush()


@functools.cache
def _supervisor(owner: int) -> subprocess.Popen[bytes]:
    """Starts the supervisor of the process `owner`. It stays until `owner` ends, the only holder of the pipe's end."""
    # In a session of its own, so that a Ctrl-C in the terminal does not reach it.
    command = [sys.executable, "-S", str(Path(__file__))]
    null = subprocess.DEVNULL
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=null, stderr=null, start_new_session=True)
    atexit.register(process.communicate)  # closes the pipe and waits
    return process


def main() -> None:
    """Reads registrations from stdin; at its end kills what is still registered."""
    groups: set[int] = set()
    settings: set[str] = set()
    for line in sys.stdin:
        verb, _, value = line.rstrip("\n").partition(" ")
        if verb == "group":
            groups.add(int(value))
        elif verb == "release":
            groups.discard(int(value))
        else:
            settings.add(value)
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
    for pid in {pid for setting in settings for pid in processes_marked(setting)}:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
