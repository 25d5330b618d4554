"""Work: throughput, time by phase, and cost of a run, from the timelines of its hosts."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from jaxtyping import Float

from pod_job.formats.records import convert
from pod_job.preflight.prices import hours, spent, usd_per_hour
from pod_job.report.overview import Overview
from pod_job.run_folder.layout import RUN
from pod_job.run_folder.pods import read_pods
from pod_job.run_folder.start import read_start
from pod_job.run_folder.status import Phase
from pod_job.run_folder.timeline import Timeline

BINS = 60
"""Equal parts of the run's time for which rates are given."""
WORKING = [phase.value for phase in Phase if not phase.ended]


@dataclass(frozen=True)
class Work:
    """Work of all starts of a run together.

    Attributes:
        hosts, devices: of the largest start.
        tokens, positions: computed by all hosts; positions that are not tokens are padding.
        waited: share of the steps that waited for their input; None where that was not recorded.
        wall_s: seconds within starts, of which those of several slices pass at the same time.
        pod_s: seconds within starts of each pod, in all.
        phase_s: seconds by phase, of the slowest host of each start.
        moments: hours from the first start, the middles of the bins of `rates`.
        rates: tokens per second by host: its index, or SLICE/INDEX.
        usd: cost in dollars; None where no price is known.
        usd_of: what `usd` counts, in words, or why there is no price.
    """

    starts: int
    hosts: int
    devices: int
    device: str
    tokens: int
    positions: int
    waited: float | None
    wall_s: float
    pod_s: float
    phase_s: dict[str, float]
    moments: Float[np.ndarray, "bins"]
    rates: dict[str, Float[np.ndarray, "bins"]]
    usd: float | None
    usd_of: str

    @property
    def padding(self) -> float | None:
        """Share of the computed positions that hold no token; None where none were computed."""
        return 1 - self.tokens / self.positions if self.positions else None

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens per second while extracting; None where no token or no time was recorded."""
        if not self.phase_s.get("extracting") or not self.tokens or not self.wall_s:
            return None
        at_once = self.pod_s / self.wall_s  # slices, on average
        return at_once * self.tokens / self.phase_s["extracting"]


def read_work(overview: Overview) -> Work | None:
    """Returns the work of a run; None where it has no timeline: another version made it, or a shuffle."""
    timelines = overview.timelines
    if not timelines:
        return None
    starts: dict[str, list[Timeline]] = {}
    for timeline in timelines:
        starts.setdefault(timeline.attempt, []).append(timeline)
    spans = [span(hosts) for hosts in starts.values()]
    totals = [last_counters(timeline) for timeline in timelines]
    phase_s = {phase: sum(longest(hosts, phase) for hosts in starts.values()) for phase in WORKING}
    moments, rates = speed(timelines, min(began for began, _ in spans), max(ended for _, ended in spans))
    wall_s, pod_s = elapsed(spans), sum(ended - began for began, ended in spans)
    devices = max(sum(timeline.devices for timeline in hosts) for hosts in starts.values())
    usd, usd_of = cost(overview, pod_s, max(ended for _, ended in spans))
    return Work(
        starts=len(starts),
        hosts=max(map(len, starts.values())),
        devices=devices,
        device=next((timeline.device for timeline in timelines if timeline.device), "unknown"),
        tokens=int(sum(counts["tokens"] for counts in totals)),
        positions=int(sum(counts["positions"] for counts in totals)),
        waited=waited_share(starts.values()),
        wall_s=wall_s,
        pod_s=pod_s,
        phase_s={phase: seconds for phase, seconds in phase_s.items() if seconds},
        moments=moments,
        rates=rates,
        usd=usd,
        usd_of=usd_of,
    )


def last_counters(timeline: Timeline) -> dict[str, float]:
    """Returns the counters of the timeline's last point by name."""
    return dict(zip(timeline.counters, timeline.points[-1][1:], strict=True))


def waited_share(starts: Iterable[list[Timeline]]) -> float | None:
    """Returns the share of all starts' steps that waited for input; None where no start has recorded it.

    All hosts wait for the one that waits: that which waited most tells of its start.
    """
    waited = steps = 0.0
    for hosts in starts:
        counts = [last_counters(timeline) for timeline in hosts if "waited_steps" in timeline.counters]
        waited += max((count["waited_steps"] for count in counts), default=0.0)
        steps += max((count["steps"] for count in counts), default=0.0)
    return min(1.0, waited / steps) if steps else None


def span(hosts: list[Timeline]) -> tuple[float, float]:
    """Returns the Unix times at which the first host of a start began and its last host recorded its last point."""
    return min(min(host.phases.values()) for host in hosts), max(host.points[-1][0] for host in hosts)


def elapsed(spans: Iterable[tuple[float, float]]) -> float:
    """Returns the seconds that lie in any of the spans of time."""
    seconds, until = 0.0, float("-inf")
    for began, ended in sorted(spans):
        seconds += max(0.0, ended - max(began, until))
        until = max(until, ended)
    return seconds


def longest(hosts: list[Timeline], phase: str) -> float:
    """Returns the seconds in a phase of the host that was in it longest."""
    seconds = 0.0
    for host in hosts:
        began = host.phases.get(phase)
        if began is not None:
            later = [when for when in host.phases.values() if when > began]
            seconds = max(seconds, min(later, default=host.points[-1][0]) - began)
    return seconds


def speed(
    timelines: list[Timeline], began: float, ended: float
) -> tuple[Float[np.ndarray, "bins"], dict[str, Float[np.ndarray, "bins"]]]:
    """Returns the middles of BINS equal bins of time, in hours from `began`, and tokens per second by host in each."""
    grid = np.linspace(began, max(ended, began + 1.0), BINS + 1)
    rates: dict[str, np.ndarray] = {}
    for timeline in timelines:
        points, column = np.array(timeline.points, float), 1 + list(timeline.counters).index("tokens")
        if points[-1, column]:
            done = np.interp(grid, points[:, 0], points[:, column])
            host = f"{timeline.slice}/{timeline.host}" if timeline.slice else str(timeline.host)
            earlier = rates.get(host, np.zeros(BINS))
            rates[host] = earlier + np.diff(done) / np.diff(grid)
    return (grid[:-1] + np.diff(grid) / 2 - began) / 3600, rates


def cost(overview: Overview, pod_s: float, heard: float) -> tuple[float | None, str]:
    """Returns the cost in dollars, None where no price is known, and what it counts.

    It counts every recorded pod of the run; without such records, the time in which its hosts worked.
    """
    accelerator_type, capacity, own = priced(read_start(overview.folder) or overview.config)
    records = read_pods(overview.folder)
    usd = spent(hours(records, (), heard, heard), own)
    if records and usd is not None:
        return usd, f"{len(records)} pods"
    hourly = usd_per_hour(accelerator_type, capacity, own)
    if hourly is None:
        return None, f"no price is known for {accelerator_type or 'a pod on local machines'}"
    return hourly * pod_s / 3600, "the time in which hosts worked; creating and deleting pods comes on top"


class PricedPod(msgspec.Struct):
    accelerator_type: str | None = None


class PricedCloud(msgspec.Struct):
    capacity: str | None = None
    price_per_chip_hour: float | None = None


class Priced(msgspec.Struct):
    """The part of a recorded configuration that a price depends on."""

    pod: PricedPod = msgspec.field(default_factory=PricedPod)
    cloud: PricedCloud = msgspec.field(default_factory=PricedCloud)


def priced(config: Mapping[str, Any]) -> tuple[str, str, float | None]:
    """Returns the kind of pod, its capacity and its own price per chip and hour, "" and None where not recorded."""
    recorded = convert(config, Priced, RUN)
    return recorded.pod.accelerator_type or "", recorded.cloud.capacity or "", recorded.cloud.price_per_chip_hour
