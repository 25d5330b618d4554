"""Why a run failed: from how every host ended to the one host that failed first, and the line that says why."""

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# What a host says when it died because another did; such a host is named only when there is nobody else to name.
LOST_PEER = re.compile(
    r"coordination (?:service|agent)|heartbeat|connection (?:closed|reset) by peer|connection refused|gloo|barrier"
    r"|another task|preempt",
    re.IGNORECASE,
)
# How the roll call of the job (pod_job/distributed.py) blames a host that failed before the start.
BLAMES_PEER = re.compile(r"^(?:error: )?host \d+ failed", re.MULTILINE)
EXCEPTION = re.compile(r"^[\w.]+(?:Error|Exception|Exit|Interrupt|Warning)\b")
TAIL_LINES = 15
TAIL_BYTES = 64 * 1024


@dataclass(frozen=True)
class Ended:
    """A host that ended with a failure. `error`: what it said of itself in its status, None when it said nothing."""

    host: int
    code: int
    arrived: bool
    error: str | None
    tail: Sequence[str]

    @property
    def user_error(self) -> bool:
        """Whether the host ended with a JobError, by the entrypoint's exit code."""
        return self.code == 2

    @property
    def died_of_another(self) -> bool:
        said = self.error or "\n".join(self.tail)
        if self.user_error:
            return BLAMES_PEER.search(said) is not None
        aborted = self.code in (-signal.SIGABRT, 128 + signal.SIGABRT)
        return aborted or LOST_PEER.search(said) is not None

    @property
    def reason(self) -> str:
        """One line: the host's own words where it left any, else how it ended."""
        said = self.error or self._last_words()
        if said:
            return said
        where = "" if self.arrived else " before it arrived"
        if self.code < 0:
            hint = ", perhaps for want of memory" if self.code == -signal.SIGKILL else ""
            return f"ended by {signal.Signals(-self.code).name}{where}{hint}"
        return f"ended with exit code {self.code}{where} and no message"

    def _last_words(self) -> str | None:
        if self.code < 0:
            return None
        said = [line for line in self.tail if line.startswith("error: ") or EXCEPTION.match(line)]
        return said[-1].removeprefix("error: ") if said else None


def first_cause(ended: Sequence[Ended]) -> Ended:
    """The host to blame, of hosts given in the order in which they ended.

    Whoever did not merely die of another comes first; among those a JobError, because it is said on purpose.
    """
    return min(ended, key=lambda one: (one.died_of_another, not one.user_error))


def tail(log: Path) -> list[str]:
    """The last TAIL_LINES lines of a log that are not empty."""
    with log.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - TAIL_BYTES))
        text = file.read().decode(errors="replace")
    return [line for line in text.splitlines() if line.strip()][-TAIL_LINES:]
