"""Progress of a job on a screen: the hosts' statuses in, one bar per phase of the whole pod out."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from launch import clock
from pod_job.run_folder.status import HostStatus, Phase, batches_computed, waited_share

PLAIN_EVERY_S = 10.0
WAITED_SHOWN = 0.01
"""Share of steps that waited for input, from which on it is shown beside the bar."""
ORDER = list(Phase)
TOKENS = "tokens"


@dataclass(frozen=True)
class Bar:
    """One phase of the pod: `done` of `total`, with a `detail` such as the speed."""

    name: str
    done: int
    total: int
    detail: str = ""

    @property
    def count(self) -> str:
        return f"{self.done:,}/{self.total:,}"


def bars(statuses: Sequence[HostStatus | None], batches: int) -> list[Bar]:
    """Returns a bar for each phase of the pod.

    Args:
        statuses: of the hosts, None for one that has not reported.
        batches: planned number, for the time until every host knows its own; of steps where SAEs are trained.
    """
    hosts = len(statuses)
    reported = [status for status in statuses if status is not None]
    trainings = [status.training for status in reported if status.training]
    training, stored = bool(trainings), any(one.stored for one in trainings)

    def past(phase: Phase) -> int:
        alive = [status for status in reported if status.phase not in (Phase.stopped, Phase.failed)]
        return sum(ORDER.index(status.phase) > ORDER.index(phase) for status in alive)

    assigned = sum(status.batches_total for status in reported)
    total = assigned if past(Phase.compiling) == hosts else max(batches, assigned)
    over = past(Phase.extracting) == hosts
    of_model = [
        Bar("weights", past(Phase.weights), hosts),
        Bar("compile", past(Phase.compiling), hosts),
        Bar("parity", past(Phase.parity), hosts),
    ]
    return [
        *([] if stored else [Bar("count prompts", past(Phase.counting), hosts)]),
        Bar("hosts arrived", past(Phase.checking), hosts),
        *([] if stored else of_model),
        *([Bar("statistics", past(Phase.statistics), hosts)] if training else []),
        training_bar(reported, batches) if training else token_bar(reported, total, over),
        Bar("write SAEs" if training else "merge", int(past(Phase.merging) == hosts), 1),
    ]


def token_bar(reported: Sequence[HostStatus], batches: int, over: bool = False, done_before: int = 0) -> Bar:
    """Returns the bar of the prompts' tokens, as computed: batches are committed several at once, and later.

    Args:
        batches: of which `done_before` were done before this attempt.
        over: nothing more will be computed, so that what has been is the total.
    """
    batch_tokens = max([0.0, *(status.batch_tokens for status in reported)])
    done = round(done_before * batch_tokens) + sum(status.prompt_tokens for status in reported)
    total = done if over else max(done, round(batches * batch_tokens))
    return Bar(TOKENS, done, total, pace(reported, 0 if over else batches - done_before))


def slice_bars(statuses: Sequence[HostStatus | None], batches: int, done_before: int) -> list[Bar]:
    """Returns the bars of several slices: no host knows how many of the `batches` will fall to it.

    Slices that have not come, which may never, are not waited for.

    Args:
        statuses: of the hosts of all slices.
        done_before: batches of earlier starts.
    """
    reported = [status for status in statuses if status is not None]
    shown = bars(reported, batches) if reported else []
    tokens = token_bar(reported, batches, done_before=done_before)
    return [tokens if bar.name == TOKENS else bar for bar in shown]


def training_bar(reported: Sequence[HostStatus], steps: int) -> Bar:
    """Returns the bar of the training steps, with metrics, speed and the time left; hosts take each step together.

    The time left is by the last steps, as the first one is compiled; at the end, without text, they are faster.
    """
    behind = min((status for status in reported if status.training), key=lambda status: status.steps, default=None)
    if behind is None or behind.training is None:
        return Bar("steps", 0, steps)
    at, parts = behind.training, [str(behind.training)]
    if behind.steps and behind.seconds:
        parts.append(f"{sum(status.tokens for status in reported) / behind.seconds:,.0f} tokens/s")
        left_s = (at.steps - at.step) * (behind.step_s or behind.seconds / behind.steps)
        parts += [f"{left_s:,.0f} s left"] if at.step < at.steps else []
    return Bar("steps", at.step, at.steps, ", ".join(filter(None, parts)))


def pace(reported: Sequence[HostStatus], assigned: int) -> str:
    """Returns batches committed, tokens per second over all hosts, waiting if there is some, and the time left; empty
    before the first step."""
    done = batches_computed(reported)
    seconds = max((status.seconds for status in reported), default=0.0)
    if not done or not seconds:
        return ""
    rate = sum(status.tokens for status in reported) / seconds
    left_s = (assigned - done) * seconds / done
    waited = waited_share(reported) or 0.0
    parts = [f"{sum(status.batches for status in reported):,} batches written", f"{rate:,.0f} tokens/s"]
    parts += [f"{waited:.0%} of steps waited for input"] if waited >= WAITED_SHOWN else []
    parts += [f"{left_s:,.0f} s left"] if left_s > 0 else []
    return ", ".join(parts)


class Screen:
    """Bars redrawn in place on a terminal; elsewhere one line per finished phase, and tokens every PLAIN_EVERY_S."""

    def __init__(self, console: Console, began: float | None = None) -> None:
        """`began`: the moment of clock.monotonic() from which seconds are shown; now, if None."""
        self.console = console
        self.progress = Progress(
            TextColumn("{task.description:<14}"),
            BarColumn(40),
            TextColumn("{task.fields[count]}"),
            TextColumn("{task.fields[detail]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self.tasks: dict[str, TaskID] = {}
        self.finished: set[str] = set()
        self.printed = clock.monotonic()
        self.started = self.printed if began is None else began

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.progress.stop()

    def show(self, now: Sequence[Bar]) -> None:
        """Shows the bars as they are now."""
        if self.console.is_terminal:
            self._draw(now)
        else:
            self._print(now)

    def _draw(self, now: Sequence[Bar]) -> None:
        for name in self.tasks.keys() - {bar.name for bar in now}:  # of a job of which nothing had been heard
            self.progress.remove_task(self.tasks.pop(name))
        for bar in now:
            if bar.name not in self.tasks:
                self.tasks[bar.name] = self.progress.add_task(bar.name, total=bar.total, count="", detail="")
            values = {"completed": bar.done, "total": bar.total, "count": bar.count, "detail": bar.detail}
            self.progress.update(self.tasks[bar.name], **values)

    def _print(self, now: Sequence[Bar]) -> None:
        moment = clock.monotonic()
        for bar in now:
            finished = bar.total and bar.done >= bar.total and bar.name not in self.finished
            current = bar.name not in self.finished and bar.done > 0 and moment - self.printed >= PLAIN_EVERY_S
            if finished:
                self.finished.add(bar.name)
            if finished or current:
                self.printed = moment
                detail = f", {bar.detail}" if bar.detail else ""
                self.console.print(
                    f"{moment - self.started:6.1f} s  {bar.name} {bar.count}{detail}",
                    highlight=False,
                    soft_wrap=True,
                )
