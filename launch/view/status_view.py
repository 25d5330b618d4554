"""A run's status for people: in a terminal a table, drawn in place; elsewhere a line for each change."""

import time
from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import msgspec
from rich.console import Console, Group, RenderableType
from rich.live import Live as RichLive
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from pod_job.run_folder.status import HostStatus, Phase, TrainingStatus, waited_share


class PodStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A pod as the API has it. `queued`: state of its queued resource; `maintenance`: when the next one begins."""

    name: str
    zone: str
    state: str
    queued: str | None
    health: str
    symptoms: list[str]
    maintenance: str | None


class PodHours(msgspec.Struct, frozen=True):
    """Hours that one pod of the run was paid for."""

    zone: str
    hours: float


class SliceStatus(msgspec.Struct, frozen=True):
    """A slice of the run: where its pod is, both "" without one, and the hosts of its latest start."""

    name: str
    zone: str
    state: str
    hosts: list[HostStatus | None]

    @property
    def phases(self) -> str:
        """Phases of its hosts, each with their number."""
        return phase_counts(self.hosts)


class RunStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A run at one moment, as `status --json` prints it. Rates, times and costs (dollars) are None where unknown.

    Where SAEs are trained, which `training` says, batches are training steps.

    `hosts` is in the order of their index, None for one that has not reported; with `slices`, slice after slice.
    """

    run: str
    batches_done: int
    batches: int
    batches_per_hour: float | None
    tokens_per_s: float | None
    left_s: float | None
    ready_at: float | None  # Unix time
    cost_so_far: float | None
    cost_expected: float | None
    pod_hours: list[PodHours]
    pods: list[PodStatus]
    hosts: list[HostStatus | None]
    slices: list[SliceStatus] = []
    training: TrainingStatus | None = None

    @property
    def ended(self) -> bool:
        """Returns whether nothing computes any more; a slice that is done has seen the end of the run."""
        done = (all(host is not None and host.phase is Phase.done for host in one.hosts) for one in self.slices)
        return any(done) or all(host is not None and host.phase.ended for host in self.hosts)


class Live:
    """Shows a run's status again and again."""

    def __init__(self, console: Console, plain: bool = False) -> None:
        """`plain`: nothing is ever drawn."""
        self.console = console
        self.drawn = RichLive(console=console, auto_refresh=False) if console.is_terminal and not plain else None
        self.printed = ""

    def __enter__(self) -> Self:
        if self.drawn is not None:
            self.drawn.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.drawn is not None:
            self.drawn.stop()

    def show(self, run: RunStatus) -> None:
        if self.drawn is not None:
            self.drawn.update(table(run), refresh=True)
        elif (text := line(run)) != self.printed:
            self.printed = text
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)


def line(run: RunStatus) -> str:
    """Returns the run in one line."""
    parts = [progress(run), phase_counts(run.hosts)]
    parts += [pod_line(pod) for pod in run.pods]
    return "; ".join(parts)


def table(run: RunStatus) -> RenderableType:
    """Returns a few lines for the run, one for each pod, and a row for each host."""
    lines = [("run", run.run), ("done", progress(run))]
    lines += [("pod", pod_line(pod)) for pod in run.pods if not run.slices or pod.symptoms or pod.maintenance]
    if run.cost_so_far is not None:
        count, time_h = len(run.pod_hours), sum(pod.hours for pod in run.pod_hours)
        left = run.left_s and run.cost_expected is not None
        expected = f", ${run.cost_expected:,.2f} expected in all" if left else ""
        pods = f"{count} pod{'s' * (count > 1)}"
        lines.append(("cost", f"${run.cost_so_far:,.2f} for {time_h:.2f} h of {pods}{expected}"))
    width = max(len(name) for name, _ in lines) + 2
    texts = [Text.from_markup(f"[bold]{name:<{width}}[/]{escape(text)}") for name, text in lines]
    return Group(*texts, slice_table(run.slices) if run.slices else host_table(run.hosts))


def phase_counts(hosts: Sequence[HostStatus | None]) -> str:
    """Returns how many hosts are in which phase."""
    phases = Counter("not heard of" if host is None else str(host.phase) for host in hosts)
    return ", ".join(f"{count} {phase}" for phase, count in phases.items())


def progress(run: RunStatus) -> str:
    """Returns how many batches are done, the speed, the share of steps that waited for input, and the time left."""
    parts = [f"{run.batches_done:,} of {run.batches:,} {'steps' if run.training else 'batches'}"]
    parts += [text] if run.training and (text := str(run.training)) else []
    if run.tokens_per_s:
        parts.append(f"{run.tokens_per_s:,.0f} tokens/s")
    if (waited := waited_share(run.hosts)) is not None:
        parts.append(f"{waited:.0%} of steps waited for input")
    if run.left_s:
        at = time.strftime("%a %H:%M", time.localtime(run.ready_at))
        parts.append(f"{run.left_s:,.0f} s left, ready {at}")
    return ", ".join(parts)


def pod_line(pod: PodStatus) -> str:
    """Returns a pod's state with its health, symptoms and announced maintenance."""
    parts = [f"{pod.name} in {pod.zone}: {pod.state}", pod.health, *pod.symptoms]
    if pod.maintenance:
        parts.append(f"maintenance from {pod.maintenance}")
    return ", ".join(filter(None, parts))


def slice_table(slices: Sequence[SliceStatus]) -> Table:
    """Returns a row for each slice: its place, its hosts, what they have done, and the first error among them."""
    rows = Table("slice", "zone", "pod", "hosts", "batches", "tokens/s", "heard", "error", box=None)
    for one in slices:
        hosts = [host for host in one.hosts if host is not None]
        seconds = max((host.seconds for host in hosts), default=0.0)
        speed = f"{sum(host.tokens for host in hosts) / seconds:,.0f}" if seconds else ""
        heard = f"{max(0.0, time.time() - min(host.updated for host in hosts)):.0f} s ago" if hosts else ""
        error = next((host.error for host in hosts if host.error), "")
        batches = str(sum(host.batches for host in hosts))
        rows.add_row(one.name, one.zone, one.state, one.phases, batches, speed, heard, escape(error))
    return rows


def host_table(hosts: Sequence[HostStatus | None]) -> Table:
    rows = Table("host", "phase", "steps", "batches", "tokens/s", "heard", "error", box=None)
    for number, host in enumerate(hosts):
        if host is None:
            rows.add_row(str(number), "not heard of yet")
            continue
        speed = f"{host.tokens / host.seconds:,.0f}" if host.seconds else ""
        counts = (str(host.steps), f"{host.batches}/{host.batches_total}", speed)
        heard = f"{max(0.0, time.time() - host.updated):.0f} s ago"
        rows.add_row(str(number), host.phase, *counts, heard, escape(host.error or ""))
    return rows
