"""How a host leaves before its work is done: asked to, or because another host has left.

The main thread may be minutes within a compilation, or wait forever in a collective for a host that is no more. So a
thread looks out, and ends the process where nothing can be finished any more; what is not committed does not count.
"""

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import jax

from pod_job.host.rendezvous import Host
from pod_job.host.reporter import Reporter
from pod_job.host.stop_request import StopRequest
from pod_job.run_folder.layout import departure_file
from pod_job.run_folder.status import Phase, read_status
from pod_job.storage.folder import Folder, NameTaken

POLL_S = 0.5
PEERS_EVERY_S = 5.0
# From the wish until batches in hand are abandoned. A preempted machine has 30 s, and the notice may come late.
GRACE_S = 20.0
REPORT_TIMEOUT_S = 5.0  # for the status to be written, where the bucket may be what has failed
NOTHING_IN_HAND = (Phase.checking, Phase.arrived, Phase.weights, Phase.compiling)

log = logging.getLogger("pod_job")


@dataclass(frozen=True)
class Departure:
    """The first host of an attempt that left before its end, and why; `asked`: it was asked to."""

    host: int
    asked: bool
    reason: str

    @property
    def words(self) -> str:
        return f"host {self.host} {'was asked to stop' if self.asked else 'failed'}: {self.reason}"


def forget(folder: Folder, attempt: str) -> None:
    """Removes what an earlier start of the same name announced. To be called before this host has arrived: one that has
    left by then also says so in its status, where the roll call finds it.
    """
    folder.remove(departure_file(attempt))


def first_departure(folder: Folder, attempt: str) -> Departure | None:
    try:
        return Departure(**json.loads(folder.read(departure_file(attempt))))
    except FileNotFoundError:
        return None


def report_end(reporter: Reporter, folder: Folder, host: Host, phase: Phase, error: str) -> None:
    """Writes the end of this host into its status, and tells the other hosts; within REPORT_TIMEOUT_S or not at all."""
    reporter.set(phase=phase, error=error)
    departure = Departure(host.index, phase is Phase.stopped, error)

    def say() -> None:
        with suppress(Exception):  # this host's log says it too
            reporter.write()
            if host.count > 1:
                announce(folder, host.attempt, departure)

    word = threading.Thread(target=say, daemon=True)
    word.start()
    word.join(REPORT_TIMEOUT_S)
    if host.index == 0 and jax.distributed.is_initialized():
        await_exits(folder, host)


def await_exits(folder: Folder, host: Host) -> None:
    """Waits until the other hosts have left, as long as they may take to hear that they should.

    Host 0 serves their coordination: were it gone before them, jax would abort them without a word in their status.
    """
    deadline = time.monotonic() + PEERS_EVERY_S + 2 * POLL_S
    with suppress(Exception):  # no storage: nothing can be seen of them
        for other in range(1, host.count):
            while time.monotonic() < deadline:
                status = read_status(folder, other, host.attempt)
                if status is not None and status.phase.ended:
                    break
                time.sleep(POLL_S)


def announce(folder: Folder, attempt: str, departure: Departure) -> None:
    """Whoever is first is the one that the other hosts of this attempt hear of."""
    with suppress(NameTaken):
        folder.create(departure_file(attempt), [json.dumps(vars(departure)).encode()])


class Watchdog:
    """Watches the wish to stop and the other hosts while it is open, and of a pod until the process ends: at its exit
    jax waits for hosts that may never come.
    """

    def __init__(
        self, folder: Folder, host: Host, stop: StopRequest, reporter: Reporter, end: Callable[[int], object] = os._exit
    ) -> None:
        """`end` ends the process with an exit status."""
        self.folder, self.host, self.stop, self.reporter, self.end = folder, host, stop, reporter, end
        self.closed = threading.Event()

    def __enter__(self) -> "Watchdog":
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.host.count == 1:
            self.closed.set()

    def _watch(self) -> None:
        looked, asked = time.monotonic(), float("inf")
        while not self.closed.wait(POLL_S):
            now, phase = time.monotonic(), self.reporter.status.phase
            if self.stop:
                asked = min(asked, now)
            if self.stop and not phase.ended and (phase in NOTHING_IN_HAND or now - asked > GRACE_S):
                return self._stop(phase, now - asked)
            if self.host.count > 1 and now - looked > PEERS_EVERY_S:
                looked = now
                first = self._first_departure()
                if first is None or first.host == self.host.index:
                    continue
                if not phase.ended:
                    return self._follow(first)
                if not threading.main_thread().is_alive():  # it waits at its exit
                    self.end(0 if phase is not Phase.failed else 1)

    def _first_departure(self) -> Departure | None:
        try:
            return first_departure(self.folder, self.host.attempt)
        except Exception as error:
            log.warning("other hosts cannot be watched now: %s", error)
            return None

    def _stop(self, phase: Phase, waited_s: float) -> None:
        reason = str(self.stop.reason)
        held = "" if phase in NOTHING_IN_HAND else f", after {waited_s:.0f} s; batches in hand are abandoned"
        log.info("stopped while %s%s", phase, held)
        self._leave(Phase.stopped, reason, 0)

    def _follow(self, first: Departure) -> None:
        log.error("%s", first.words)
        if first.asked:
            self._leave(Phase.stopped, first.reason, 0)
        else:
            self._leave(Phase.failed, first.words, 1)

    def _leave(self, phase: Phase, error: str, status: int) -> None:
        report_end(self.reporter, self.folder, self.host, phase, error)
        sys.stdout.flush()
        sys.stderr.flush()
        self.end(status)
