"""What a host says of itself: a small JSON file in the run folder, replaced at each phase and every few seconds.

It is what `launch` shows on the screen, on this machine and for a pod far away.
"""

import dataclasses
import json
import time
from dataclasses import dataclass
from enum import StrEnum

from pod_job.run_folder.layout import status_file
from pod_job.storage.folder import Folder


class Phase(StrEnum):
    """Phases of a host in their order; a host ends in `done`, `stopped` or `failed`."""

    checking = "checking"  # reading and checking inputs
    arrived = "arrived"  # ready, waiting for the other hosts
    weights = "weights"
    compiling = "compiling"
    extracting = "extracting"
    merging = "merging"
    done = "done"
    stopped = "stopped"  # asked to, before all was done; `error` says by what
    failed = "failed"


@dataclass(frozen=True)
class HostStatus:
    """One host's progress in this attempt; counts are of this attempt and this host only.

    `positions` counts all token positions computed, `tokens` those that held a prompt's token: the rest is padding.
    `skipped_tasks` counts the broken tasks of the whole run, on every host alike.
    `seconds` is the time spent extracting. `step_s` is the median time from one step's results to the next one's, with
    mode=generate that of a prefill, and `token_s` that of one more token of every row; 0 where none was timed.
    """

    host: int
    attempt: str
    phase: Phase
    steps: int = 0
    batches: int = 0
    batches_total: int = 0
    samples: int = 0
    cut_samples: int = 0
    skipped_tasks: int = 0
    tokens: int = 0
    positions: int = 0
    rows: int = 0
    bytes: int = 0
    seconds: float = 0.0
    step_s: float = 0.0
    token_s: float = 0.0
    updated: float = 0.0  # Unix time
    error: str | None = None


def write_status(folder: Folder, status: HostStatus) -> None:
    """Replaces `status/host_NN.json`."""
    stamped = dataclasses.replace(status, updated=time.time())
    folder.replace(status_file(status.host), json.dumps(dataclasses.asdict(stamped)).encode())


def read_status(folder: Folder, host: int, attempt: str) -> HostStatus | None:
    """The host's last word in this `attempt`; None when it has not spoken yet."""
    try:
        record = json.loads(folder.read(status_file(host)))
    except FileNotFoundError:
        return None
    if record["attempt"] != attempt:
        return None
    return HostStatus(**{**record, "phase": Phase(record["phase"])})


def latest_attempt(folder: Folder, hosts: int) -> str | None:
    """The newest start that any host has spoken of; attempts sort by time. None before the first."""
    found = []
    for host in range(hosts):
        try:
            found.append(json.loads(folder.read(status_file(host)))["attempt"])
        except FileNotFoundError:
            continue
    return max(found, default=None)
