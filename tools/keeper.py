"""Ends processes whose parent was killed. Contexts end what they started when they are left; SIGKILL leaves none.

`keep` and `keep_marked` tell a small process of its own what to end; it does so when the pipe from here breaks, and
that it does however this process ends.
"""

import atexit
import contextlib
import functools
import os
import signal
import subprocess
import sys
from pathlib import Path


def keep(pid: int) -> None:
    """The process group `pid` ends when this process has ended, unless it was released."""
    _tell(f"keep {pid}")


def release(pid: int) -> None:
    """The group has ended by itself, and its number may come to belong to another."""
    _tell(f"release {pid}")


def keep_marked(setting: str) -> None:
    """The same for every process with `setting` (NAME=value) in its environment. Linux only."""
    _tell(f"marked {setting}")


def marked(setting: str) -> list[int]:
    """The processes with `setting` in their environment, as far as this user may look."""
    wanted, found = setting.encode(), []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # ended meanwhile, or another user's
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


def _tell(line: str) -> None:
    pipe = _keeper(os.getpid()).stdin
    assert pipe is not None
    pipe.write(line.encode() + b"\n")
    pipe.flush()


@functools.cache
def _keeper(owner: int) -> subprocess.Popen[bytes]:
    """The keeper of the process `owner`. It stays until `owner` ends, whose end of the pipe nobody else has."""
    # In a session of its own, so that a Ctrl-C in the terminal is not for it.
    command = [sys.executable, "-S", str(Path(__file__))]
    null = subprocess.DEVNULL
    keeper = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=null, stderr=null, start_new_session=True)
    atexit.register(keeper.communicate)  # closes the pipe and waits
    return keeper


def main() -> None:
    groups: set[int] = set()
    settings: set[str] = set()
    for line in sys.stdin:
        verb, _, what = line.rstrip("\n").partition(" ")
        if verb == "keep":
            groups.add(int(what))
        elif verb == "release":
            groups.discard(int(what))
        else:
            settings.add(what)
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
    for pid in {pid for setting in settings for pid in marked(setting)}:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
