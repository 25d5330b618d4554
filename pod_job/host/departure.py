"""Departure of a host before its work is done: into its status, and to the other hosts, which then leave too."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import jax
import msgspec

from pod_job.errors import JobError
from pod_job.formats.records import encode, read_file
from pod_job.host.host_end import HostEnd, host_end_of
from pod_job.host.rendezvous import Host
from pod_job.host.reporter import Reporter
from pod_job.run_folder.layout import departure_file
from pod_job.run_folder.status import EndKind, read_status
from pod_job.storage.folder import Folder, NameTaken

POLL_S = 0.5
PEERS_EVERY_S = 5.0  # between two looks for the departure of another host
REPORT_TIMEOUT_S = 5.0  # for the status to be written, where the bucket may be what has failed

log = logging.getLogger("pod_job")


class Departure(msgspec.Struct, frozen=True):
    """The first host of an attempt that left before its end, and why."""

    host: int
    end: EndKind
    reason: str

    @property
    def asked(self) -> bool:
        return self.end is EndKind.stopped

    @property
    def host_end(self) -> HostEnd:
        """End of every host that leaves because of this one."""
        if self.asked:
            return HostEnd(EndKind.stopped, self.reason, self.host)
        return HostEnd(EndKind.lost_peer, f"host {self.host} failed: {self.reason}", self.host)


def clear_departure(folder: Folder, attempt: str) -> None:
    """Removes what an earlier start of the same name announced.

    To be called before this host has arrived: a host that has left by then also says so in its status, where
    `await_hosts` finds it.
    """
    folder.remove(departure_file(attempt))


def first_departure(folder: Folder, attempt: str) -> Departure | None:
    """Returns the departure that this attempt's hosts were told of; None where there is none."""
    try:
        return read_file(folder, departure_file(attempt), Departure)
    except FileNotFoundError:
        return None


def announce(folder: Folder, attempt: str, departure: Departure) -> None:
    """Tells the other hosts of this attempt; the first announcement counts."""
    with suppress(NameTaken):
        folder.create(departure_file(attempt), [encode(departure)])


def report_end(reporter: Reporter, folder: Folder, host: Host, end: HostEnd) -> None:
    """Writes a host's final status with its kind of end and tells the other hosts, within REPORT_TIMEOUT_S or not at
    all.
    """
    reporter.set(phase=end.phase, error=end.reason, end=end.kind, blamed_host=end.blamed_host)

    def report() -> None:
        with suppress(Exception):  # this host's log says it too
            reporter.write()
            if host.count > 1:
                announce(folder, host.attempt, Departure(host.index, end.kind, end.reason))

    thread = threading.Thread(target=report, name="final status", daemon=True)
    thread.start()
    thread.join(REPORT_TIMEOUT_S)
    if host.index == 0 and jax.distributed.is_initialized():
        await_exits(folder, host)


def await_exits(folder: Folder, host: Host) -> None:
    """Waits until the other hosts have ended, as long as they may take to see that they should.

    Host 0 serves their coordination: were it gone before them, jax would abort them before they write their status.
    """
    deadline = time.monotonic() + PEERS_EVERY_S + 2 * POLL_S
    with suppress(Exception):  # without storage nothing can be seen of them
        for other in range(1, host.count):
            while time.monotonic() < deadline:
                status = read_status(folder, other, host.attempt)
                if status is not None and status.phase.ended:
                    break
                time.sleep(POLL_S)


@contextmanager
def reporting_failure(reporter: Reporter, folder: Folder, host: Host) -> Iterator[None]:
    """Logs an exception that leaves the block and reports the end that it means; the exception goes on."""
    try:
        yield
    except BaseException as error:
        end = host_end_of(error)
        log.error("%s", end.reason, exc_info=not isinstance(error, JobError))
        report_end(reporter, folder, host, end)
        raise
