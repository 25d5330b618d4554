"""Why a run failed: from how hosts ended to the one that failed first, and the line that says why."""

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# An exception that says no more than that another host died; whoever raised it is named only when nobody else can be.
LOST_PEER = re.compile(
    r"coordination ?(?:service|agent)|distributed service|heartbeat|connection (?:closed|reset) by peer"
    r"|connection refused|gloo|barrier|another task|preempt",
    re.IGNORECASE,
)
# How a host blames another: in the roll call (pod_job/distributed.py), and later (pod_job/lookout.py).
BLAMES_PEER = re.compile(r"host \d+ (failed|was asked to stop)")
# What jax's coordination service says, before it aborts a host, of one that no longer answers.
UNHEALTHY = re.compile(r"stopped sending heartbeats\):\s*(?:\S*task:)?(\d+)")
EXCEPTION = re.compile(r"^[\w.]+(?:Error|Exception|Exit|Interrupt|Warning)\b")
TAIL_BYTES = 64 * 1024


@dataclass(frozen=True)
class Ended:
    """A host that ended with a failure.

    `error` is what it said of itself in its status, None when it said nothing; `lines` is the end of its log.
    """

    host: int
    code: int
    arrived: bool
    error: str | None
    lines: Sequence[str]

    @property
    def user_error(self) -> bool:
        """Whether the host ended with a JobError, by the entrypoint's exit code."""
        return self.code == 2

    @property
    def words(self) -> str | None:
        """What the host itself says is wrong, in one line."""
        if self.error is not None or self.code < 0:
            return self.error
        said = [line for line in self.lines if line.startswith("error: ") or EXCEPTION.match(line)]
        return said[-1].removeprefix("error: ") if said else None

    @property
    def died_of_another(self) -> bool:
        if BLAMES_PEER.match(self.words or ""):
            return True
        if self.user_error:
            return False
        aborted = self.code in (-signal.SIGABRT, 128 + signal.SIGABRT)
        return aborted or LOST_PEER.search(self.words or "") is not None

    @property
    def reason(self) -> str:
        """One line: the host's own words where it left any, else how it ended."""
        if self.words:
            return self.words
        where = "" if self.arrived else " before it arrived"
        if self.code < 0:
            hint = ", perhaps for want of memory" if self.code == -signal.SIGKILL else ""
            return f"ended by {signal.Signals(-self.code).name}{where}{hint}"
        return f"ended with exit code {self.code}{where} and no message"


@dataclass(frozen=True)
class Cause:
    """The host to blame, why, and whether the user can mend it. `lost`: no host says why, so another start may do."""

    host: int
    reason: str
    user_error: bool
    lost: bool = False


def first_cause(ended: Sequence[Ended]) -> Cause:
    """The first cause, from the hosts that failed in the order in which they ended.

    Whoever did not merely die of another comes first; among those a JobError, because it is said on purpose. When all
    died of another, it is the host that they say has stopped answering.
    """
    first = min(ended, key=lambda one: (one.died_of_another, not one.user_error))
    said = "\n".join(line for one in ended for line in one.lines)
    if first.died_of_another and (silent := UNHEALTHY.search(said)):
        return Cause(
            int(silent[1]), "stopped answering; the other hosts ended because of it", user_error=False, lost=True
        )
    lost = first.died_of_another or not first.words
    return Cause(first.host, first.reason, first.user_error, lost)


def tail(log: Path) -> list[str]:
    """The last lines of a log, up to TAIL_BYTES, without empty ones."""
    with log.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - TAIL_BYTES))
        text = file.read().decode(errors="replace")
    return [line for line in text.splitlines() if line.strip()]
