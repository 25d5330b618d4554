"""A pod on this machine: one process per host, followed until all have ended or one has failed."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from launch.host_commands import HostCommand
from launch.shell import start
from pod_job.errors import JobError, Stopped

POLL_S = 0.25
# After the first host's failure the others are given this long to fail too: the cause is then chosen among all of
# them, because a host that dies of a lost peer can be seen before the peer that was lost.
SETTLE_S = 2.0
# From SIGTERM to SIGKILL.
GRACE_S = 5.0


class LocalPod:
    """The host processes of one run; a context manager that leaves no process behind, however the block ends."""

    def __init__(self, commands: Sequence[HostCommand], log_dir: Path) -> None:
        self.commands = commands
        self.logs = [log_dir / f"host_{host:02d}.log" for host in range(len(commands))]
        self.processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        self.logs[0].parent.mkdir(parents=True, exist_ok=True)
        try:
            for command, log in zip(self.commands, self.logs, strict=True):
                self.processes.append(start(command.argv, command.env, log))
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        say_what_follows(kind, error, at)
        self.end()

    def exits(self) -> dict[int, int]:
        """Returns host -> exit code of those that have ended; minus the signal's number where a signal ended it."""
        codes = {host: process.poll() for host, process in enumerate(self.processes)}
        return {host: code for host, code in codes.items() if code is not None}

    def end(self) -> None:
        """Ends every process that still runs, with SIGTERM first and SIGKILL after GRACE_S."""
        deadline = time.monotonic() + GRACE_S
        for signum in (signal.SIGTERM, signal.SIGKILL):
            for process in self.processes:
                if process.poll() is None:
                    # The host leads its own process group, so what it started ends with it.
                    os.killpg(process.pid, signum)
            for process in self.processes:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(None if signum == signal.SIGKILL else max(0.0, deadline - time.monotonic()))


def say_what_follows(kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
    """Says, where a signal ends the block, that hosts are being ended: that takes up to GRACE_S."""
    if isinstance(error, Stopped):
        print(f"{error}: ending the hosts, within {GRACE_S:.0f} s; what is written stays", file=sys.stderr, flush=True)


def follow(pod: LocalPod, show: Callable[[], None]) -> dict[int, int]:
    """Calls `show` every POLL_S until all hosts have ended, or SETTLE_S after the first has failed.

    Returns host -> exit code in the order in which they were seen to end; what was not seen in order stands by index.
    """
    ended: dict[int, int] = {}
    settled_at: float | None = None
    while True:
        ended |= pod.exits()
        show()
        now = time.monotonic()
        if settled_at is None and any(ended.values()):
            settled_at = now + SETTLE_S
        if len(ended) == len(pod.commands) or (settled_at is not None and now >= settled_at):
            return ended
        time.sleep(POLL_S)


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Raises Stopped in the block at the first SIGINT, SIGTERM or SIGHUP; later ones are ignored."""
    signums = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def stop(signum: int, frame: FrameType | None) -> None:
        for handled in signums:
            signal.signal(handled, signal.SIG_IGN)
        raise Stopped(signum)

    before = [signal.signal(signum, stop) for signum in signums]
    try:
        yield
    finally:
        for signum, handler in zip(signums, before, strict=True):
            signal.signal(signum, handler)


def coordinator_address(port: int) -> str:
    """Returns 127.0.0.1:port for host 0 to listen on; port 0 chooses a free one.

    Raises JobError when something listens there already.
    """
    with socket.socket() as probe:
        # As the coordinator itself does: a port that only lingers after an earlier run is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise JobError(
                f"pod.port={port} cannot be used on this machine ({error.strerror}); "
                "use another one, or pod.port=0 for any that is free"
            ) from error
        return f"127.0.0.1:{probe.getsockname()[1]}"
