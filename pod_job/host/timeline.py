"""How a host's work went over time: when it entered each phase, and its counters every few seconds.

One small file per start and host, `timeline/ATTEMPT_host_03.json`. Nothing depends on it: reports read it.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from pod_job.host.status import HostStatus, Phase
from pod_job.run_folder import layout
from pod_job.storage.folder import Folder

COUNTERS = ("steps", "batches", "tokens", "positions", "rows", "bytes")
MOST_POINTS = 512


@dataclass
class Timeline:
    """`phases`: when each was entered, Unix time. `points`: Unix time, then the counters as COUNTERS names them.

    `device`, `devices`: what this host computes on; unknown until it has joined the others.
    """

    host: int
    attempt: str
    device: str = ""
    devices: int = 0
    counters: tuple[str, ...] = COUNTERS
    phases: dict[str, float] = field(default_factory=dict)
    points: list[list[float]] = field(default_factory=list)

    def enter(self, phase: Phase, now: float) -> None:
        self.phases.setdefault(phase.value, now)

    def note(self, status: HostStatus, now: float) -> None:
        """Adds a point. The number of points is bounded: when there are too many, every other one goes."""
        if len(self.points) >= MOST_POINTS:
            self.points = self.points[::2]
        self.points.append([round(now, 3), *(getattr(status, name) for name in COUNTERS)])


def write_timeline(folder: Folder, timeline: Timeline) -> None:
    """Replaces the file of this start and host."""
    folder.replace(layout.timeline_file(timeline.attempt, timeline.host), json.dumps(asdict(timeline)).encode())


def read_timelines(folder: Folder) -> Iterator[dict[str, Any]]:
    """All of a run, in the order of starts and hosts; a damaged one, which nothing depends on, is left out."""
    for name in folder.names(layout.TIMELINE):
        try:
            found = json.loads(folder.read(name))
            if found["phases"] and isinstance(found["points"], list):
                yield found
        except (ValueError, KeyError, TypeError):
            continue
