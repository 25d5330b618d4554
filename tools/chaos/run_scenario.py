"""Runs one scenario from its first start to its compacted dataset, and compares that with the undisturbed run's."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pod_job.checking.verify import verify
from pod_job.errors import JobError
from pod_job.reading.dataset import ActivationDataset
from tools.chaos.processes import Running, begin_compaction, begin_start
from tools.chaos.scenarios import MAX_BYTES, Compaction, Scenario, Start

LAYERS = (0, 2)
TOLERANCE = 1e-4
"""Relative tolerance: the order of additions depends on the mesh."""

Dataset = tuple[dict[str, np.ndarray], list[np.ndarray]]


@dataclass
class Outcome:
    """Ends of the starts and compactions, in order, and problems of the dataset."""

    ends: list[tuple[Start | Compaction, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def ends_of(self, actions: Sequence[Start | Compaction]) -> list[str]:
        return [end for action, end in self.ends if any(action is wanted for wanted in actions)]


def run_scenario(
    scenario: Scenario, overrides: Sequence[str], run_dir: str, log: Path, truth: Dataset | None = None
) -> Outcome:
    """Runs a scenario; without a `truth` it compacts nothing. Its processes have ended when it returns."""
    stage = Stage(overrides, run_dir, log)
    try:
        for start in scenario.disturbed:
            stage.finish(stage.begin(start))
        beside = [scenario.beside] if scenario.beside else []
        for process in [stage.begin(action) for action in (*beside, *scenario.last)]:
            stage.finish(process)
        if not scenario.waking_late:
            stage.wake()
        if truth is not None:
            compact_and_compare(scenario, stage, truth)
    finally:
        stage.end()
    return stage.outcome


class Stage:
    """Run folder of a scenario, and the processes that use it."""

    def __init__(self, overrides: Sequence[str], run_dir: str, log: Path) -> None:
        self.overrides, self.run_dir, self.log = overrides, run_dir, log
        self.outcome, self.started, self.asleep = Outcome(), list[Running](), list[Running]()

    def begin(self, action: Start | Compaction) -> Running:
        if isinstance(action, Start):
            self.started.append(begin_start(action, self.overrides, self.log))
        else:
            self.started.append(begin_compaction(action, self.run_dir, self.log))
        return self.started[-1]

    def finish(self, running: Running) -> None:
        """Waits until the processes have ended or stopped."""
        end = running.wait()
        self.outcome.ends.append((running.action, end))
        if end == "stopped":
            self.asleep.append(running)

    def wake(self) -> None:
        """Resumes the stopped processes and waits for their end."""
        self.outcome.ends += [(running.action, f"woke up and {running.wake()}") for running in self.asleep]
        self.asleep.clear()

    def end(self) -> None:
        """Kills what still runs."""
        for running in self.started:
            running.end("ended")


def compact_and_compare(scenario: Scenario, stage: Stage, truth: Dataset) -> None:
    """Runs the second half of a scenario; of the first half only stopped processes are left."""
    run_dir, outcome = stage.run_dir, stage.outcome
    # A killed compaction leaves files that the next one removes; every row must be readable even then.
    outcome.problems += differences(run_dir, truth) if scenario.beside else problems_of(run_dir, truth)
    for compaction in scenario.compactions:
        stage.finish(stage.begin(compaction))
        outcome.problems += [f"compacted in part: {problem}" for problem in differences(run_dir, truth)]
    stage.wake()
    final = Compaction(MAX_BYTES[-1])
    stage.finish(stage.begin(final))
    if outcome.ends_of([final]) != ["finished"]:
        outcome.problems.append(f"the last compaction {outcome.ends_of([final])[0]}")
    outcome.problems += [f"compacted: {problem}" for problem in problems_of(run_dir, truth)]
    if ActivationDataset(run_dir, LAYERS[0]).metadata.joined is None:
        outcome.problems.append("the run was not compacted")


def read_dataset(run_dir: str | Path) -> Dataset:
    """Returns the provenance of all rows, and the vectors of every tap."""
    datasets = [ActivationDataset(run_dir, layer) for layer in LAYERS]
    return datasets[0].rows(slice(None)), [dataset[:] for dataset in datasets]


def problems_of(run_dir: str | Path, truth: Dataset) -> list[str]:
    """Returns the problems of a finished dataset."""
    report = verify(run_dir)
    if not report.sound:
        return [*report.problems, f"missing batches: {report.missing}"]
    return differences(run_dir, truth)


def differences(run_dir: str | Path, truth: Dataset) -> list[str]:
    """Returns how the dataset, as a reader sees it, differs from that of the undisturbed run."""
    try:
        rows, taps = read_dataset(run_dir)
    except JobError as error:
        return [f"cannot be read: {error}"]
    different = [name for name in rows if not np.array_equal(rows[name], truth[0][name])]
    for layer, vectors, expected in zip(LAYERS, taps, truth[1], strict=True):
        if not np.allclose(vectors, expected, rtol=TOLERANCE, atol=TOLERANCE):
            different.append(f"layer_{layer}")
    return [f"{name} differs from the undisturbed run" for name in different]
