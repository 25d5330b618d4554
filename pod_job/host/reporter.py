"""Reporter of a host: keeps its status, log and timeline in the run folder up to date, from a thread of its own.

The job's threads only change counters and never wait for the bucket.
"""

import contextlib
import logging
import threading
import time
from typing import Any

import msgspec

from pod_job.host.rendezvous import Host
from pod_job.run_folder.commit import CommitRecord
from pod_job.run_folder.layout import log_file
from pod_job.run_folder.status import HostStatus, Phase, write_status
from pod_job.run_folder.timeline import Timeline, write_timeline
from pod_job.storage.folder import Folder

REFRESH_S = 2.0
# At least this often, so that a host that has ended or hangs can be told from one that computes.
HEARTBEAT_S = 15.0
# Reports read the timeline after the run: it need not be as fresh.
TIMELINE_S = 30.0

log = logging.getLogger("pod_job")


class Reporter(logging.Handler):
    """Keeps `status/host_NN.json` and `logs/host_NN.log` of one host up to date while it is open."""

    def __init__(self, folder: Folder, host: Host) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self.folder = folder
        self.lines: list[str] = []
        self.lines_written: int | None = None
        self.status = HostStatus(host=host.index, hosts=host.count, attempt=host.attempt, phase=Phase.counting)
        self.timeline = Timeline(host=host.index, attempt=host.attempt, slice=host.slice or "")
        self.changed = threading.Lock()
        # Of two writers of one object the later may lose, and would leave an older log for good.
        self.writing = threading.Lock()
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._refresh, name="reporter", daemon=True)

    def __enter__(self) -> "Reporter":
        log.addHandler(self)
        self._mark(self.status.phase)
        self.write()
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Writes the final status; a folder that cannot be written any more does not hide why the job ended."""
        self.stopping.set()
        self.thread.join()
        log.removeHandler(self)
        with contextlib.suppress(Exception):
            self.write()
            self._mark(self.status.phase)  # a host that fails does not enter the phase
            write_timeline(self.folder, self.timeline)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record) + "\n")

    def phase(self, phase: Phase, **values: Any) -> None:
        """Enters a phase and writes the status at once."""
        log.info("%s", phase)
        self.set(phase=phase, **values)
        self._mark(phase)
        self.write()

    def set(self, **values: Any) -> None:
        with self.changed:
            self.status = msgspec.structs.replace(self.status, **values)

    def add(self, **counts: int) -> None:
        """Adds to counters of the status."""
        with self.changed:
            sums = {name: getattr(self.status, name) + count for name, count in counts.items()}
            self.status = msgspec.structs.replace(self.status, **sums)

    def waited(self, idle: bool, seconds: float) -> None:
        """Counts a step by whether the devices were idle before it, and the seconds waited for its input if so."""
        with self.changed:
            steps, waited_s = self.status.waited_steps or 0, self.status.waited_s or 0.0
            waits = {"waited_steps": steps + idle, "waited_s": round(waited_s + seconds * idle, 3)}
            self.status = msgspec.structs.replace(self.status, **waits)

    def committed(self, record: CommitRecord) -> None:
        """Counts a batch by its commit record."""
        self.add(batches=1, rows=record.rows, bytes=sum(file.size for file in record.files))

    def write(self) -> None:
        """Writes log and status, in that order: who sees the last phase may delete this machine."""
        with self.writing:
            status, lines = self.status, len(self.lines)
            if lines != self.lines_written:  # a request less for each host every REFRESH_S
                self.folder.replace(log_file(status.host), "".join(self.lines[:lines]).encode())
                self.lines_written = lines
            write_status(self.folder, status)

    def _mark(self, phase: Phase) -> None:
        with self.changed:
            self.timeline.enter(phase, time.time())
            self.timeline.add_point(self.status, time.time())

    def _refresh(self) -> None:
        written, when, timeline_written = None, 0.0, time.monotonic()
        while not self.stopping.wait(REFRESH_S):
            if (self.status, len(self.lines)) != written or time.monotonic() - when > HEARTBEAT_S:
                written, when = (self.status, len(self.lines)), time.monotonic()
                with self.changed:
                    self.timeline.add_point(self.status, time.time())
                try:
                    self.write()
                    if time.monotonic() - timeline_written > TIMELINE_S:
                        timeline_written = time.monotonic()
                        write_timeline(self.folder, self.timeline)
                except Exception:
                    log.exception("status could not be written; trying again")
