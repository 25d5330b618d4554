"""From the timelines of a run: how fast it went, where its time went, and what that cost."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from pod_job.preflight.prices import hours, spent, usd_per_hour
from pod_job.report.overview import Overview
from pod_job.run_folder.pods import read_pods
from pod_job.run_folder.timeline import Timeline

BINS = 60
WORKING = ("checking", "arrived", "weights", "compiling", "extracting", "merging")


@dataclass(frozen=True)
class Work:
    """Of all starts together. `rates`: by host, tokens a second at `moments` (hours from the first start), all of it
    within starts. `phase_s`: of the slowest host. `usd` is None where no price is known; `usd_of` says what it counts.
    """

    starts: int
    hosts: int
    devices: int
    device: str
    tokens: int
    positions: int
    wall_s: float
    phase_s: dict[str, float]
    moments: Float[np.ndarray, "bins"]
    rates: dict[int, Float[np.ndarray, "bins"]]
    usd: float | None
    usd_of: str

    @property
    def padding(self) -> float | None:
        return 1 - self.tokens / self.positions if self.positions else None

    @property
    def tokens_per_s(self) -> float | None:
        """While extracting."""
        return self.tokens / self.phase_s["extracting"] if self.phase_s.get("extracting") and self.tokens else None


def read_work(overview: Overview) -> Work | None:
    """None where the run has no timeline: another version made it, or a shuffle."""
    timelines = overview.timelines
    if not timelines:
        return None
    starts: dict[str, list[Timeline]] = {}
    for timeline in timelines:
        starts.setdefault(timeline.attempt, []).append(timeline)
    spans = [span(hosts) for hosts in starts.values()]
    last = [dict(zip(timeline.counters, timeline.points[-1][1:], strict=True)) for timeline in timelines]
    phase_s = {phase: sum(longest(hosts, phase) for hosts in starts.values()) for phase in WORKING}
    moments, rates = speed(timelines, min(began for began, _ in spans), max(ended for _, ended in spans))
    wall_s = sum(ended - began for began, ended in spans)
    devices = max(sum(timeline.devices for timeline in hosts) for hosts in starts.values())
    usd, usd_of = cost(overview, wall_s, max(ended for _, ended in spans))
    return Work(
        starts=len(starts),
        hosts=max(map(len, starts.values())),
        devices=devices,
        device=next((timeline.device for timeline in timelines if timeline.device), "unknown"),
        tokens=int(sum(counts["tokens"] for counts in last)),
        positions=int(sum(counts["positions"] for counts in last)),
        wall_s=wall_s,
        phase_s={phase: seconds for phase, seconds in phase_s.items() if seconds},
        moments=moments,
        rates=rates,
        usd=usd,
        usd_of=usd_of,
    )


def span(hosts: list[Timeline]) -> tuple[float, float]:
    """When a start's first host began and when its last was last heard of."""
    return min(min(host.phases.values()) for host in hosts), max(host.points[-1][0] for host in hosts)


def longest(hosts: list[Timeline], phase: str) -> float:
    """For how long the host that was in the phase longest was in it."""
    found = 0.0
    for host in hosts:
        began = host.phases.get(phase)
        if began is not None:
            later = [when for when in host.phases.values() if when > began]
            found = max(found, min(later, default=host.points[-1][0]) - began)
    return found


def speed(
    timelines: list[Timeline], began: float, ended: float
) -> tuple[Float[np.ndarray, "bins"], dict[int, Float[np.ndarray, "bins"]]]:
    """Tokens a second of each host that had any, in equal bins of time."""
    grid = np.linspace(began, max(ended, began + 1.0), BINS + 1)
    rates: dict[int, np.ndarray] = {}
    for timeline in timelines:
        points, column = np.array(timeline.points, float), 1 + list(timeline.counters).index("tokens")
        if points[-1, column]:
            done = np.interp(grid, points[:, 0], points[:, column])
            earlier = rates.get(timeline.host, np.zeros(BINS))
            rates[timeline.host] = earlier + np.diff(done) / np.diff(grid)
    return (grid[:-1] + np.diff(grid) / 2 - began) / 3600, rates


def cost(overview: Overview, wall_s: float, heard: float) -> tuple[float | None, str]:
    """Dollars: of every pod the run has had, where `launch` kept their records; else of the time its hosts worked."""
    pod, cloud = overview.config.get("pod", {}), overview.config.get("cloud", {})
    own = cloud.get("price_per_chip_hour")
    records = read_pods(overview.folder)
    usd = spent(hours(records, (), heard, heard), own)
    if records and usd is not None:
        return usd, f"{len(records)} pods"
    hourly = usd_per_hour(pod.get("accelerator_type") or "", cloud.get("capacity") or "", own)
    if hourly is None:
        return None, f"no price is known for {pod.get('accelerator_type') or 'a pod on local machines'}"
    return hourly * wall_s / 3600, "the time in which hosts worked; creating and deleting pods comes on top"
