"""Status of a host: a small JSON file in the run folder, replaced at each phase and every few seconds.

`launch` shows it and decides on it, on this machine and for a pod far away. It lies in this folder, not in `host`,
because whoever looks at a run reads it; only `host` writes it.
"""

import logging
import time
from collections.abc import Iterable
from enum import StrEnum
from functools import cache
from typing import Annotated, NamedTuple

import msgspec

from pod_job.formats.records import DamagedRecord, encode, read_file
from pod_job.run_folder.layout import status_file
from pod_job.storage.folder import Folder

log = logging.getLogger("pod_job")

MOST_HOSTS = 10_000
"""Hosts of a start; no slice has as many."""

MOST_BYTES = 1 << 20
"""Size of a status; the statuses of all hosts are read every few seconds."""


class Phase(StrEnum):
    """Phases of a host in their order; a host ends in `done`, `stopped` or `failed`."""

    counting = "counting"  # reading the configuration; listing and counting the prompts
    checking = "checking"  # looking at prompts, and checksums of what the vectors depend on
    arrived = "arrived"  # ready, waiting for the other hosts
    weights = "weights"
    compiling = "compiling"
    parity = "parity"  # comparing vectors with the reference
    statistics = "statistics"  # with mode=train: measuring the inputs' scale and center, or reading a checkpoint
    extracting = "extracting"
    training = "training"  # with mode=train in place of extracting
    merging = "merging"
    done = "done"
    stopped = "stopped"  # asked to, before all was done; `error` says by what
    failed = "failed"

    @property
    def has_arrived(self) -> bool:
        """Returns whether a host of this phase is ready, or was."""
        return self not in (Phase.counting, Phase.checking)

    @property
    def ended(self) -> bool:
        return self in (Phase.done, Phase.stopped, Phase.failed)


class EndKind(StrEnum):
    """Kind of an end before the work was done: it decides whether another start, or another pod, may help."""

    user_error = "user_error"  # a JobError: the person who started the job can fix it
    bug = "bug"  # any other exception
    lost_peer = "lost_peer"  # another host ended or does not answer
    bad_machine = "bad_machine"  # chips or network of this machine do not work
    stopped = "stopped"  # asked to


class TrainingStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Progress of training: `step` of `steps`, and the means of the metrics over all SAEs whose loss is finite.

    `dead` is the share of latents that have not fired of late. None where nothing was measured yet. `stored`: on the
    vectors of a finished run, so that no model is loaded.
    """

    step: int
    steps: int
    stored: bool = False
    loss: float | None = None
    l0: float | None = None
    explained_variance: float | None = None
    dead: float | None = None

    def __str__(self) -> str:
        values = {"loss": self.loss, "L0": self.l0, "explained variance": self.explained_variance}
        shown = [f"{name} {value:.4g}" for name, value in values.items() if value is not None]
        return ", ".join(shown + ([] if self.dead is None else [f"{self.dead:.1%} dead"]))


class HostStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Progress of one host in one attempt; counts are of this attempt and this host only.

    `positions` counts all token positions computed, `tokens` those that held a prompt's token: the rest is padding.
    `prompt_tokens` are those of `tokens` that prompts have, with mode=generate of prompts whose completion has ended;
    `batch_tokens` are those of a batch of the run on average, by the prompts looked at; 0: not known.
    `dropped_tokens` are those of samples longer than a row that no prompt has, `cut_samples` such samples.
    `skipped_tasks` counts the broken tasks of the whole run, on every host alike.
    `seconds` is the time spent extracting. `step_s` is the median time from one step's results to the next one's, with
    mode=generate that of a prefill, and `token_s` that of one more token of every row; 0 where none was timed.
    `waited_steps` counts the steps before which the devices were idle because the input was not ready, for `waited_s`
    seconds in all; None where that was not recorded.
    `hosts` is the number of hosts of the attempt; 0: not recorded.
    `training` is set with mode=train, where `steps` counts training steps, `tokens` the rows of this host in them, and
    `step_s` is the mean of the last steps.
    `end` and `blamed_host` are set with the phases `stopped` and `failed`; a run of version 0.1.0 has neither.
    """

    host: int
    attempt: str
    phase: Phase
    steps: int = 0
    batches: int = 0
    batches_total: int = 0
    samples: int = 0
    cut_samples: int = 0
    dropped_tokens: int = 0
    skipped_tasks: int = 0
    tokens: int = 0
    prompt_tokens: int = 0
    batch_tokens: float = 0.0
    positions: int = 0
    rows: int = 0
    bytes: int = 0
    seconds: float = 0.0
    step_s: float = 0.0
    token_s: float = 0.0
    waited_steps: int | None = None
    waited_s: float | None = None
    updated: float = 0.0  # Unix time
    error: str | None = None
    end: EndKind | None = None
    blamed_host: int | None = None
    hosts: Annotated[int, msgspec.Meta(ge=0, le=MOST_HOSTS)] = 0
    training: TrainingStatus | None = None


def batches_computed(statuses: Iterable[HostStatus | None]) -> float:
    """Returns the batches that hosts have computed in this attempt, by their prompts' tokens, so parts of them too.

    They are committed later, several at once. Of a host that does not know the tokens of a batch, those committed.
    """
    reported = [status for status in statuses if status is not None]
    return float(sum(one.prompt_tokens / one.batch_tokens if one.batch_tokens else one.batches for one in reported))


def waited_share(statuses: Iterable[HostStatus | None]) -> float | None:
    """Returns the share of steps that waited for their input; None where no host has recorded it.

    Hosts compute each step together, and all wait for the one that waits: the host that waited most tells.
    """
    shares = [
        status.waited_steps / status.steps
        for status in statuses
        if status is not None and status.waited_steps is not None and status.steps
    ]
    return min(1.0, max(shares)) if shares else None


class Start(NamedTuple):
    """A start of the job: the name of its attempt, and its number of hosts."""

    attempt: str
    hosts: int


def write_status(folder: Folder, status: HostStatus) -> None:
    """Replaces `status/host_NN.json`, stamped with the time."""
    folder.replace(status_file(status.host), encode(msgspec.structs.replace(status, updated=time.time())))


def read_status(folder: Folder, host: int, attempt: str | None = None) -> HostStatus | None:
    """Returns a host's latest status in this attempt, or in any; None where there is none yet, or it is damaged."""
    status = _read(folder, host)
    return status if status is not None and attempt in (None, status.attempt) else None


def latest_attempt(folder: Folder, hosts: int) -> str | None:
    """Returns the newest attempt in which any host has a status, None before the first. Attempts sort by time."""
    latest = latest_start(folder, hosts)
    return None if latest is None else latest.attempt


def latest_start(folder: Folder, hosts: int) -> Start | None:
    """Returns the newest attempt and its number of hosts; `hosts`: that of the first start, for older statuses."""
    statuses = [_read(folder, host) for host in range(hosts)]
    starts = [Start(status.attempt, status.hosts or hosts) for status in statuses if status is not None]
    return max(starts, default=None)


def _read(folder: Folder, host: int) -> HostStatus | None:
    try:
        return read_file(folder, status_file(host), HostStatus, most_bytes=MOST_BYTES)
    except FileNotFoundError:
        return None
    except DamagedRecord as error:
        # No reason to end a job or to stop watching one: the host writes the file again within seconds.
        _warn_once(f"{error}; treated as a host that has not reported")
        return None


@cache
def _warn_once(message: str) -> None:
    log.warning("%s", message)
