"""One scenario of tools/chaos.py from its first start to its compacted dataset, compared with the undisturbed run's."""

from collections.abc import Callable, Sequence
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
"""Relative; another mesh adds in another order."""

Dataset = tuple[dict[str, np.ndarray], list[np.ndarray]]


@dataclass
class Played:
    """What became of each start and compaction, in order, and what is wrong with what they left."""

    outcomes: list[tuple[Start | Compaction, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def ended(self, whats: Sequence[Start | Compaction]) -> list[str]:
        return [outcome for what, outcome in self.outcomes if any(what is each for each in whats)]


def play(scenario: Scenario, overrides: Sequence[str], run_dir: str, log: Path, truth: Dataset | None = None) -> Played:
    """Plays a scenario to its end. Without a `truth` nothing is compacted. No process outlives it."""
    played, begun, asleep = Played(), list[Running](), list[Running]()

    def see(running: Running) -> None:
        played.outcomes.append((running.what, running.wait()))
        if played.outcomes[-1][1] == "stopped":
            asleep.append(running)

    def wake() -> None:
        played.outcomes += [(each.what, f"woke up and {each.wake()}") for each in asleep]
        asleep.clear()

    def begin(what: Start | Compaction) -> Running:
        of_pod = isinstance(what, Start)
        begun.append(begin_start(what, overrides, log) if of_pod else begin_compaction(what, run_dir, log))
        return begun[-1]

    try:
        for start in scenario.disturbed:
            see(begin(start))
        together = [begin(what) for what in ([scenario.beside] if scenario.beside else []) + [*scenario.last]]
        for running in together:
            see(running)
        if not scenario.waking_late:
            wake()
        if truth is not None:
            compact_and_compare(scenario, run_dir, truth, played, lambda what: see(begin(what)), wake)
    finally:
        for running in begun:
            running.end("ended")
    return played


def compact_and_compare(
    scenario: Scenario,
    run_dir: str,
    truth: Dataset,
    played: Played,
    run: Callable[[Compaction], None],
    wake: Callable[[], None],
) -> None:
    """The second half of a scenario; while nothing but what was stopped is left of the first."""
    # A compaction that was hit leaves files that the next one removes; of the rows nothing may be missing even then.
    played.problems += differences(run_dir, truth) if scenario.beside else problems_of(run_dir, truth)
    for compaction in scenario.compactions:
        run(compaction)
        played.problems += [f"compacted in part: {problem}" for problem in differences(run_dir, truth)]
    wake()
    final = Compaction(MAX_BYTES[-1])
    run(final)
    if played.ended([final]) != ["finished"]:
        played.problems.append(f"the last compaction {played.ended([final])[0]}")
    played.problems += [f"compacted: {problem}" for problem in problems_of(run_dir, truth)]
    if ActivationDataset(run_dir, LAYERS[0]).metadata.joined is None:
        played.problems.append("the run was not compacted")


def read_dataset(run_dir: str | Path) -> Dataset:
    """Provenance of all rows, and the vectors of every tap."""
    datasets = [ActivationDataset(run_dir, layer) for layer in LAYERS]
    return datasets[0].rows(slice(None)), [dataset[:] for dataset in datasets]


def problems_of(run_dir: str | Path, truth: Dataset) -> list[str]:
    """What is wrong with a finished dataset; empty where nothing is."""
    report = verify(run_dir)
    if not report.sound:
        return [*report.problems, f"missing batches: {report.missing}"]
    return differences(run_dir, truth)


def differences(run_dir: str | Path, truth: Dataset) -> list[str]:
    """What a reader finds that is not in the undisturbed run."""
    try:
        rows, taps = read_dataset(run_dir)
    except JobError as error:
        return [f"cannot be read: {error}"]
    found = [name for name in rows if not np.array_equal(rows[name], truth[0][name])]
    for layer, vectors, expected in zip(LAYERS, taps, truth[1], strict=True):
        if not np.allclose(vectors, expected, rtol=TOLERANCE, atol=TOLERANCE):
            found.append(f"layer_{layer}")
    return [f"{name} differs from the undisturbed run" for name in found]
