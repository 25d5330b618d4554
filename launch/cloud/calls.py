"""Runs gcloud: each call has a deadline, and failures that pass by themselves are tried again.

A service that is overloaded, a connection that breaks, a gcloud that crashes or hangs: none of them says anything about
the pod, and the next call may well succeed.
"""

import re
from collections.abc import Callable, Sequence
from json import JSONDecoder
from typing import TypeVar

from launch import clock
from launch.shell import Finished, call
from launch.view.timed_log import Log
from pod_job.errors import first_line

PATIENCE_S = 900.0  # for which failures that pass by themselves are tried again
PAUSE_S, LONGEST_PAUSE_S = 2.0, 30.0
LIST_TIMEOUT_S = 120.0
SSH_TIMEOUT_S = 900.0
REQUEST_TIMEOUT_S = 120.0  # of a queued resource
# gcloud waits for these operations to end.
CREATE_TIMEOUT_S = 900.0
DELETE_TIMEOUT_S = 600.0

# Texts of gcloud 528 for statuses 429 and 5xx, for errors of the connection, and for its own crash.
TRANSIENT = re.compile(
    r"\b(UNAVAILABLE|INTERNAL|DEADLINE_EXCEEDED|ABORTED)\b|'status': '?(429|5\d\d)|\bstatus: (429|5\d\d)"
    r"|\bHTTP ?Error:? (429|5\d\d)"
    r"|requests? per (minute|day|100 seconds)|too many requests|rate ?limit"
    r"|connection (reset|refused|aborted|broken|timed out)|remote end closed|timed out|no answer within"
    r"|max retries exceeded|unable to find the server|name resolution|network is unreachable"
    r"|network connectivity issues|no route to host|gcloud crashed|Traceback \(most recent call last\)",
    re.IGNORECASE,
)
MOST_SHOWN = 1000  # characters of a reason, which may be a whole page of a proxy
NETWORK_LIBRARIES = {"google", "requests", "urllib3", "http", "ssl"}

Result = TypeVar("Result")


def gcloud_error(text: str) -> str:
    """Returns the reason in gcloud's stderr, in one line."""
    lines = text.strip().splitlines()
    starts = [index for index, line in enumerate(lines) if line.startswith("ERROR:")]
    reason = " ".join(line.strip() for line in lines[starts[0] :] if line.strip()) if starts else " ".join(lines[-1:])
    return reason[:MOST_SHOWN] or "no reason given"


def json_in(text: str, opening: str) -> str | None:
    """Returns the JSON in what gcloud printed, without warnings around it; None where it has none that is whole.

    An empty list is printed as such: no output at all says nothing, least of all that there is nothing.

    Args:
        opening: "[" of a list, or "{" of a record, with which a line begins.
    """
    for match in re.finditer(rf"^\s*(?=\{opening})", text, re.MULTILINE):
        try:
            _, end = JSONDecoder().raw_decode(text, match.end())
        except ValueError:
            continue
        return text[match.end() : end]
    return None


def passes_by_itself(done: Finished) -> bool:
    """Returns whether a call failed for a reason that has nothing to do with what was asked."""
    return done.code < 0 or (done.code != 0 and TRANSIENT.search(done.err) is not None)


class Patience:
    """Growing pauses between attempts, for some seconds in all."""

    def __init__(self, seconds: float) -> None:
        self.deadline, self.pause_s = clock.monotonic() + seconds, PAUSE_S

    @property
    def over(self) -> bool:
        """Returns whether the next attempt would come too late."""
        return clock.monotonic() + self.pause_s > self.deadline

    def wait(self) -> None:
        clock.sleep(self.pause_s)
        self.pause_s = min(LONGEST_PAUSE_S, 2 * self.pause_s)


def call_api(argv: Sequence[str], timeout_s: float, patience_s: float = PATIENCE_S, log: Log | None = None) -> Finished:
    """Runs a command that asks the API; tries again what passes by itself, for `patience_s` at most."""
    patience = Patience(patience_s)
    while True:
        done = call(argv, timeout_s=timeout_s)
        if not passes_by_itself(done) or patience.over:
            return done
        if log is not None:
            log(f"{gcloud_error(done.err)[:200]}; trying again")
        patience.wait()


def call_hosts(argv: Sequence[str], stdin: bytes = b"", timeout_s: float = SSH_TIMEOUT_S) -> Finished:
    """Runs ssh or scp on hosts, once: gcloud itself tries again."""
    return call(argv, stdin, timeout_s=timeout_s)


def from_network(error: BaseException) -> bool:
    """Returns whether an error is of a connection or of a library that speaks to one."""
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] in NETWORK_LIBRARIES


def patiently(action: Callable[[], Result], log: Log) -> Result:
    """Returns what `action` returns; errors of the network are tried again for PATIENCE_S."""
    patience = Patience(PATIENCE_S)
    while True:
        try:
            return action()
        except Exception as error:
            if not from_network(error) or patience.over:
                raise
            log(f"{first_line(error)}; trying again")
        patience.wait()
