"""Watchdog of a host: ends the process when it was asked to stop, or when another host has left.

The main thread may be minutes within a compilation, or wait forever in a collective for a host that is no more. So a
thread watches, and ends the process where nothing can be finished any more; what is not committed does not count.
"""

import logging
import os
import sys
import threading
import time
from collections.abc import Callable

from pod_job.host.departure import PEERS_EVERY_S, POLL_S, Departure, first_departure, report_end
from pod_job.host.host_end import HostEnd, restart_status
from pod_job.host.rendezvous import Host
from pod_job.host.reporter import Reporter
from pod_job.host.stop_request import StopRequest
from pod_job.run_folder.status import EndKind, Phase
from pod_job.storage.folder import Folder

# From the stop request until batches in hand are abandoned. A preempted machine has 30 s, and the notice may come late.
GRACE_S = 20.0
NOTHING_IN_HAND = (
    *(Phase.counting, Phase.checking, Phase.arrived),
    *(Phase.weights, Phase.compiling, Phase.parity, Phase.statistics),
)

log = logging.getLogger("pod_job")


class Watchdog:
    """Watches the stop request and the other hosts while it is open.

    On a pod of several hosts it watches until the process ends: at its exit jax waits for hosts that may never come.
    """

    def __init__(
        self,
        folder: Folder,
        host: Host,
        stop: StopRequest,
        reporter: Reporter,
        exit_now: Callable[[int], object] = os._exit,
    ) -> None:
        """`exit_now` ends the process with an exit status."""
        self.folder, self.host, self.stop, self.reporter, self.exit_now = folder, host, stop, reporter, exit_now
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
                return self._abandon(phase, now - asked)
            if self.host.count > 1 and now - looked > PEERS_EVERY_S:
                looked = now
                departure = self._departure_of_another()
                if departure is None:
                    continue
                if not phase.ended:
                    log.error("host %d %s: %s", departure.host, departure.end, departure.reason)
                    return self._leave(departure.host_end)
                if not threading.main_thread().is_alive():  # it waits at its exit
                    ended = restart_status(self.reporter.status.end)
                    self.exit_now(ended or (0 if phase is not Phase.failed else 1))

    def _departure_of_another(self) -> Departure | None:
        try:
            departure = first_departure(self.folder, self.host.attempt)
        except Exception as error:
            log.warning("other hosts cannot be watched now: %s", error)
            return None
        return None if departure is None or departure.host == self.host.index else departure

    def _abandon(self, phase: Phase, waited_s: float) -> None:
        held = "" if phase in NOTHING_IN_HAND else f", after {waited_s:.0f} s; batches in hand are abandoned"
        log.info("stopped while %s%s", phase, held)
        self._leave(HostEnd(EndKind.stopped, str(self.stop.reason)))

    def _leave(self, end: HostEnd) -> None:
        report_end(self.reporter, self.folder, self.host, end)
        sys.stdout.flush()
        sys.stderr.flush()
        # As where the main thread sees the other host's end first: a reason in one line, no traceback.
        self.exit_now(restart_status(end.kind) or (0 if end.phase is Phase.stopped else 2))
