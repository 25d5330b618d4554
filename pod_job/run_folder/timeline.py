"""Timeline of a host: when it entered each phase, and its counters every few seconds.

One small file per start and host, `timeline/ATTEMPT_host_03.json`. Nothing depends on it: reports read it.
"""

import itertools
import math
from collections.abc import Iterator

import msgspec

from pod_job.formats.records import DamagedRecord, encode, read_file
from pod_job.run_folder import layout
from pod_job.run_folder.slices import report_folder, slice_names
from pod_job.run_folder.status import HostStatus, Phase
from pod_job.storage.folder import Folder

COUNTERS = ("steps", "batches", "tokens", "positions", "rows", "bytes", "waited_steps")
MOST_POINTS = 512


class Timeline(msgspec.Struct, kw_only=True):
    """`phases`: when each was entered, Unix time. `points`: Unix time, then the counters as `counters` names them.

    `device`, `devices`: kind and number of the devices of this host; unknown until it has joined the others.
    `slice`: name of its slice, "" where the run has one pod; the folder that the file lies in counts.
    """

    host: int
    attempt: str
    device: str = ""
    devices: int = 0
    slice: str = ""
    counters: tuple[str, ...] = COUNTERS
    phases: dict[str, float] = {}
    points: list[list[float]] = []

    def __post_init__(self) -> None:
        if any(len(point) != 1 + len(self.counters) for point in self.points):
            raise ValueError(f"points are not a time and {len(self.counters)} counters each")
        if not all(map(math.isfinite, itertools.chain(self.phases.values(), *self.points))):
            raise ValueError("a time or a counter is not finite")

    def enter(self, phase: Phase, now: float) -> None:
        self.phases.setdefault(phase.value, now)

    def add_point(self, status: HostStatus, now: float) -> None:
        """Adds the counters of now. The number of points is bounded: when there are too many, every other one goes."""
        if len(self.points) >= MOST_POINTS:
            self.points = self.points[::2]
        self.points.append([round(now, 3), *(getattr(status, name) or 0 for name in COUNTERS)])


def write_timeline(folder: Folder, timeline: Timeline) -> None:
    """Replaces the file of this start and host."""
    folder.replace(layout.timeline_file(timeline.attempt, timeline.host), encode(timeline))


def read_timelines(folder: Folder) -> Iterator[Timeline]:
    """Yields the timelines of a run, in the order of slices, starts and hosts, without empty and damaged ones."""
    for slice_name in (None, *slice_names(folder)):
        reports = report_folder(folder, slice_name)
        for name in reports.names(layout.TIMELINE):
            try:
                timeline = read_file(reports, name, Timeline)
            except DamagedRecord:
                continue
            if timeline.phases and timeline.points:
                timeline.slice = slice_name or ""
                yield timeline
