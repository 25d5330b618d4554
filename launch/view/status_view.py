"""A run's status for people: one table, drawn anew in a terminal; elsewhere a line whenever something has changed."""

import time
from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live as RichLive
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from pod_job.host.status import HostStatus


class Live:
    """`show` the status again and again."""

    def __init__(self, console: Console, plain: bool = False) -> None:
        """`plain`: nothing is ever drawn."""
        self.console = console
        self.drawn = RichLive(console=console, auto_refresh=False) if console.is_terminal and not plain else None
        self.said = ""

    def __enter__(self) -> Self:
        if self.drawn is not None:
            self.drawn.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.drawn is not None:
            self.drawn.stop()

    def show(self, facts: dict[str, Any], hosts: Sequence[HostStatus | None]) -> None:
        if self.drawn is not None:
            self.drawn.update(table(facts, hosts), refresh=True)
        elif (text := line(facts, hosts)) != self.said:
            self.said = text
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)


def line(facts: dict[str, Any], hosts: Sequence[HostStatus | None]) -> str:
    """The run in one line."""
    phases = Counter("not heard of" if host is None else str(host.phase) for host in hosts)
    parts = [progress(facts), ", ".join(f"{count} {phase}" for phase, count in phases.items())]
    parts += [pod_line(pod) for pod in facts["pods"]]
    return "; ".join(parts)


def table(facts: dict[str, Any], hosts: Sequence[HostStatus | None]) -> RenderableType:
    """A few lines for the run, one for each pod, one for each host."""
    lines = [("run", facts["run"]), ("done", progress(facts))]
    lines += [("pod", pod_line(pod)) for pod in facts["pods"]]
    if facts["cost_so_far"] is not None:
        count, time_h = len(facts["pod_hours"]), sum(entry["hours"] for entry in facts["pod_hours"])
        left = facts["left_s"] and facts["cost_expected"] is not None
        expected = f", ${facts['cost_expected']:,.2f} expected in all" if left else ""
        pods = f"{count} pod{'s' * (count > 1)}"
        lines.append(("cost", f"${facts['cost_so_far']:,.2f} for {time_h:.2f} h of {pods}{expected}"))
    width = max(len(name) for name, _ in lines) + 2
    said = [Text.from_markup(f"[bold]{name:<{width}}[/]{escape(text)}") for name, text in lines]
    return Group(*said, host_table(hosts))


def progress(facts: dict[str, Any]) -> str:
    """How far, how fast, and until when."""
    parts = [f"{facts['batches_done']:,} of {facts['batches']:,} batches"]
    if facts["tokens_per_s"]:
        parts.append(f"{facts['tokens_per_s']:,.0f} tokens/s")
    if facts["left_s"]:
        at = time.strftime("%a %H:%M", time.localtime(facts["ready_at"]))
        parts.append(f"{facts['left_s']:,.0f} s left, ready {at}")
    return ", ".join(parts)


def pod_line(pod: dict[str, Any]) -> str:
    """A pod's state and what the API says against it."""
    parts = [f"{pod['name']} in {pod['zone']}: {pod['state']}", pod["health"], *pod["symptoms"]]
    if pod["maintenance"]:
        parts.append(f"maintenance from {pod['maintenance']}")
    return ", ".join(filter(None, parts))


def host_table(hosts: Sequence[HostStatus | None]) -> Table:
    found = Table("host", "phase", "steps", "batches", "tokens/s", "heard", "error", box=None)
    for number, host in enumerate(hosts):
        if host is None:
            found.add_row(str(number), "not heard of yet")
            continue
        speed = f"{host.tokens / host.seconds:,.0f}" if host.seconds else ""
        counts = (str(host.steps), f"{host.batches}/{host.batches_total}", speed)
        heard = f"{max(0.0, time.time() - host.updated):.0f} s ago"
        found.add_row(str(number), host.phase, *counts, heard, escape(host.error or ""))
    return found
