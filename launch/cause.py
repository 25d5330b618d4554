"""The first cause of a failed run: which host ended by itself, why, and whether another start may help.

Decided on the kind of end in each host's status, on exit codes, and on whether there is a status at all. What the job
has logged is shown to people and never read here.
"""

import re
import signal
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from pod_job.run_folder.status import EndKind, HostStatus, Phase

LOG_END_BYTES = 64 * 1024
# Exit codes of `python -m pod_job`.
BUG, USER_ERROR = 1, 2
# jax's coordination service aborts the hosts that are left, from C++, where no status can be written any more.
ABORTED = (-signal.SIGABRT, 128 + signal.SIGABRT)
# Memory or chips that do not work: neither Python nor the code that jax compiles ends so by itself.
BROKEN = (-signal.SIGSEGV, 128 + signal.SIGSEGV, -signal.SIGBUS, 128 + signal.SIGBUS)
SIGNALS = {signum.value for signum in signal.Signals}
# The line of an error that is shown: that of a command, or the last of a traceback.
EXCEPTION = re.compile(r"error: |((\w+\.)+[A-Z]\w*|\w*(Error|Exception|Exit|Interrupt))(: |$)")
# From the first cause to its consequences: of those that ended, who comes first is blamed.
ORDER = {EndKind.user_error: 0, EndKind.bug: 1, EndKind.bad_machine: 1, None: 1, EndKind.stopped: 1}


@dataclass(frozen=True)
class HostExit:
    """A host that ended with a failure.

    Attributes:
        code: exit code, minus the signal's number where a signal ended it; None where the host could not be asked.
        status: its latest in this attempt; None where it wrote none.
        lines: the end of its log, without empty lines.
    """

    host: int
    code: int | None
    status: HostStatus | None = None
    lines: Sequence[str] = ()

    @property
    def kind(self) -> EndKind | None:
        """Returns the kind of its end; None where it was killed or left no report."""
        if self.status is not None and self.status.end is not None:
            return self.status.end
        if self.aborted:
            return EndKind.lost_peer
        if self.code in BROKEN:
            return None if self.at_exit else EndKind.bad_machine
        if self.unreported:
            return None
        if self.code == USER_ERROR:
            return EndKind.user_error
        # Version 0.1.0 wrote no kind; an error before the run folder is open is in the log alone.
        failed = self.status is not None and self.status.phase is Phase.failed
        return EndKind.bug if failed or (self.code == BUG and self.lines) else None

    @property
    def unreported(self) -> bool:
        """Returns whether it ended by itself while its status says that it runs: its last report is missing."""
        running = self.status is not None and self.status.end is None and self.status.phase is not Phase.failed
        return running and self.code in (BUG, USER_ERROR)

    @property
    def at_exit(self) -> bool:
        """Returns whether all of its batches were committed: what ends it after that need not be its machine."""
        return self.status is not None and self.status.phase in (Phase.merging, Phase.done)

    @property
    def aborted(self) -> bool:
        return self.code in ABORTED and (self.status is None or self.status.end is None)

    @property
    def blamed_host(self) -> int | None:
        return None if self.status is None else self.status.blamed_host

    @property
    def reason(self) -> str:
        """Returns one line: the error of its status, else of its log, else how it ended."""
        if self.status is not None and self.status.error is not None:
            return self.status.error
        if self.code in (BUG, USER_ERROR) and self.lines:
            # C++ may log more after Python's exception.
            errors = [line for line in self.lines if EXCEPTION.match(line)]
            return (errors or self.lines)[-1].removeprefix("error: ")
        arrived = self.status is not None and self.status.phase.has_arrived
        where = "" if arrived else " before it arrived"
        if self.code is not None and -self.code in SIGNALS:
            hint = ", perhaps for want of memory" if self.code == -signal.SIGKILL else ""
            return f"ended by {signal.Signals(-self.code).name}{where}{hint}"
        return f"ended with exit code {self.code}{where} and no message"


@dataclass(frozen=True)
class Cause:
    """The host to blame, why, and the kind of its end: None where it ended without a word, or has not ended.

    `certain`: False while another host, or another kind of end, may turn out to be the cause.
    """

    host: int
    reason: str
    kind: EndKind | None = None
    certain: bool = True

    @property
    def user_error(self) -> bool:
        return self.kind is EndKind.user_error

    @property
    def lost(self) -> bool:
        """Returns whether another start may help: nobody made a mistake."""
        return self.kind in (EndKind.lost_peer, EndKind.bad_machine, None)

    @property
    def asked(self) -> bool:
        return self.kind is EndKind.stopped

    @property
    def bad_machine(self) -> bool:
        """Returns whether another start may help, but on another pod only."""
        return self.kind is EndKind.bad_machine


def first_cause(exits: Sequence[HostExit], running: Collection[int] = ()) -> Cause:
    """Returns the first cause.

    Whoever did not merely end because of another comes first; among those a user error, because it is raised on
    purpose, then the earliest. Last come those whose report is missing: they may have ended because of another. When
    all ended because of another, it is the host that they blame, or the only one that still runs after jax has aborted
    the others for want of an answer.

    Args:
        exits: the hosts that failed, in the order in which they ended; at least one.
        running: the hosts that have not ended.
    """
    first = min(exits, key=lambda exit: (exit.unreported, ORDER.get(exit.kind, 2), exit.blamed_host is not None))
    if first.kind is not EndKind.lost_peer:
        # The others may finish without one that had nothing left to compute.
        certain = not first.unreported and not first.at_exit
        return Cause(first.host, first.reason, first.kind, certain)
    if len(running) == 1 and any(exit.aborted for exit in exits):
        return Cause(next(iter(running)), "stopped answering; the other hosts ended because of it", first.kind)
    host = first.host if first.blamed_host is None else first.blamed_host
    return Cause(host, first.reason, first.kind, certain=False)


def tail(log: Path) -> list[str]:
    """Returns the last lines of a log, up to LOG_END_BYTES, without empty ones."""
    with log.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - LOG_END_BYTES))
        text = file.read().decode(errors="replace")
    return [line for line in text.splitlines() if line.strip()]
