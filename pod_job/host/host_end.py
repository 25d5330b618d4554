"""Kind of end that an exception means, decided in the job's own process, where the exception object is at hand.

The launcher decides on the kind alone: `bad_machine` costs the pod, `lost_peer` another start, the others end the run.
"""

import os
import re
from dataclasses import dataclass

from pod_job import environment
from pod_job.errors import JobError
from pod_job.run_folder.status import EndKind, Phase

# Errors of jax and libtpu (0.0.42) on a machine whose chips, metadata server or links to other machines do not work.
# The cure is another pod: the next start on this one fails as well.
BAD_MACHINE = re.compile(
    r"unable to initialize backend 'tpu'"
    r"|tpu initialization failed"
    r"|couldn't open iommu group|/dev/(?:vfio/\S+|accel\d+): device or resource busy"
    r"|the tpu is already in use by"
    r"|no \S+ device found"
    r"|slice ?builder|ici network faults"
    r"|getting metadata\[.*\] failed|failed to get tpu metadata|tpu-env",
    re.IGNORECASE,
)
# They begin alike where a package is missing, which another pod would lack too.
NO_LIBTPU = re.compile(r"libtpu\.so: cannot open|no module named", re.IGNORECASE)
# Errors of jax's collectives and its coordination service on the hosts that are left when one has died.
LOST_PEER = re.compile(
    r"coordination ?(?:service|agent)|distributed service|heartbeat|connection (?:closed|reset) by peer"
    r"|connection refused|gloo|barrier|another task|preempt",
    re.IGNORECASE,
)

MAY_PASS = {EndKind.stopped, EndKind.lost_peer, EndKind.bad_machine}
"""Kinds of end after which another start may do."""


def restart_status(kind: EndKind | None) -> int | None:
    """Returns the exit status by which an engine knows that another start may do; None where it has named none."""
    status = os.environ.get(environment.RESTART_STATUS, "")
    return int(status) if status.isdecimal() and kind in MAY_PASS else None


class PeerEnded(JobError):
    """Another host ended, or never came: `host`. `asked`: it was asked to stop."""

    def __init__(self, host: int, message: str, asked: bool = False) -> None:
        super().__init__(message)
        self.host = host
        self.asked = asked


@dataclass(frozen=True)
class HostEnd:
    """End of a host before its work was done. `blamed_host`: the host that is its cause, where one is known."""

    kind: EndKind
    reason: str
    blamed_host: int | None = None

    @property
    def phase(self) -> Phase:
        return Phase.stopped if self.kind is EndKind.stopped else Phase.failed


def host_end_of(error: BaseException) -> HostEnd:
    """Returns the end that an exception means: a JobError by its type, one of another library by its text."""
    if isinstance(error, PeerEnded):
        return HostEnd(EndKind.stopped if error.asked else EndKind.lost_peer, str(error), error.host)
    if isinstance(error, JobError):
        return HostEnd(EndKind.user_error, str(error))
    text = f"{type(error).__name__}: {error}"
    from_jax = isinstance(error, RuntimeError)  # all errors of jax and XLA are
    if from_jax and BAD_MACHINE.search(text) and not NO_LIBTPU.search(text):
        return HostEnd(EndKind.bad_machine, text)
    if isinstance(error, ConnectionError) or (from_jax and LOST_PEER.search(text)):
        return HostEnd(EndKind.lost_peer, text)
    return HostEnd(EndKind.bug, text)
