"""Kills pods at random and at every step of the commit protocol, and checks that the finished dataset is not affected.

`python -m tools.chaos OUT_DIR --runs 300` runs scenarios (scenarios.py): starts of the real job, with a tiny model and
various hosts and meshes, that are killed, or suspended and resumed too late, or run at the same time; then one that may
finish; then compactions, disturbed in the same ways, and a last one that may finish. Run folders are in a local folder
and, where the emulator is installed, in a bucket by turns. The dataset is verified and compared row by row with that of
an undisturbed run: after the job, after each disturbed compaction, and after the last. The report is JSON on stdout;
the exit status is 0 if no row was lost, stored twice or mixed up.
"""

import argparse
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from pod_job.environment import STORAGE_EMULATOR
from pod_job.errors import JobError
from pod_job.storage.open import open_folder
from tools.bucket import bucket_available, bucket_server
from tools.chaos.processes import CONTEXT
from tools.chaos.run_scenario import LAYERS, Outcome, read_dataset, run_scenario
from tools.chaos.scenarios import SHAPES, Compaction, Scenario, Start, scenarios
from tools.tiny_model import write_tiny_model

PER_BATCH = 2
BUCKET = "chaos"


def job(out: Path, samples: int) -> list[str]:
    """Returns the overrides of the job that is disturbed, without its run folder."""
    model = write_tiny_model(out / "model", mlp=64)
    return [
        *(f"model.path={model}", "model.dtype=float32", "tasks=arc_sample", f"tasks.limit={samples}"),
        *("extract=all_tokens", "extract.dtype=float32", "extract.seq_len=256", "extract.too_long=tail"),
        *(f"extract.layers=[{','.join(map(str, LAYERS))}]", f"extract.save_every_n_samples={PER_BATCH}"),
        *(f"storage.compile_cache={out}/compile_cache", "pod.arrival_timeout_s=60", "parity.samples=0"),
    ]


class FailedScenario(msgspec.Struct):
    """A scenario that left a dataset with problems."""

    scenario: int
    problems: list[str]
    log: str


class Counts(msgspec.Struct):
    """Numbers of pods, or compactions, by outcome, and by the step at which they were killed or stopped."""

    disturbed: int = 0
    outcomes: dict[str, int] = {}
    steps: dict[str, int] = {}
    disturbed_in: dict[str, int] = {}

    def add(self, action: Start | Compaction, end: str, where: str) -> None:
        count(self.outcomes, end)
        if end in ("killed", "stopped"):
            count(self.steps, f"{end} at {action.fault.step if action.fault else 'random'}")
            count(self.disturbed_in, where)
            self.disturbed += 1


def count(counts: dict[str, int], key: str) -> None:
    counts[key] = counts.get(key, 0) + 1


class Report(msgspec.Struct):
    """Result of a campaign; `finished_by_two_pods_at_once` and `compacted_beside_pods` are numbers of scenarios."""

    pods: Counts = msgspec.field(default_factory=Counts)
    compactions: Counts = msgspec.field(default_factory=Counts)
    finished_by_two_pods_at_once: int = 0
    compacted_beside_pods: int = 0
    rows_of_each_dataset: int = 0
    bad: list[FailedScenario] = []

    def add(self, scenario: Scenario, outcome: Outcome, where: str) -> None:
        for action, end in outcome.ends:
            (self.pods if isinstance(action, Start) else self.compactions).add(action, end, where)
        self.finished_by_two_pods_at_once += len(scenario.last) > 1
        self.compacted_beside_pods += scenario.beside is not None


@dataclass(frozen=True)
class Campaign:
    """Scenarios until `runs` starts were killed or stopped: run folders are in `places` by turns, logs in `out`."""

    out: Path
    runs: int
    seed: int
    samples: int
    places: Sequence[str]


def chaos(campaign: Campaign, log: Callable[[str], None]) -> Report:
    """Runs the campaign. Raises JobError where even the undisturbed run fails."""
    CONTEXT.set_forkserver_preload(["tools.chaos.host"])
    out, report = campaign.out, Report()
    overrides, undisturbed = job(out, campaign.samples), out / "undisturbed"
    quiet, settings = Scenario((), (Start(SHAPES[0]),)), [*overrides, f"storage.run_dir={undisturbed}"]
    [(_, end)] = run_scenario(quiet, settings, str(undisturbed), out / "undisturbed.log").ends
    if end != "finished":
        raise JobError(f"the undisturbed run {end}; its log is {out}/undisturbed.log")
    truth = read_dataset(undisturbed)
    report.rows_of_each_dataset = len(truth[1][0])
    for number, scenario in enumerate(scenarios(campaign.seed)):
        if report.pods.disturbed >= campaign.runs:
            return report
        place = campaign.places[number % len(campaign.places)]
        run_dir, run_log = f"{place}/run_{number:04d}", out / f"run_{number:04d}.log"
        outcome = run_scenario(scenario, [*overrides, f"storage.run_dir={run_dir}"], run_dir, run_log, truth)
        report.add(scenario, outcome, place.partition("://")[0] if "://" in place else "folder")
        problems = unfinished(scenario, outcome) + outcome.problems
        log(f"{number}: {', '.join(end for _, end in outcome.ends)}: {'; '.join(problems) or 'no problem'}")
        if problems:
            report.bad.append(FailedScenario(number, problems, str(run_log)))
        else:
            remove_run(run_dir)
    return report


def unfinished(scenario: Scenario, outcome: Outcome) -> list[str]:
    """Returns a problem for each of the last starts that should have finished and did not."""
    ends = [end for end in outcome.ends_of(scenario.last) if end != "finished"]
    if scenario.beside and len(scenario.last) > 1:
        # A pod may fail where the files of a batch that the other pod committed were compacted.
        ends = [end for end in ends if not end.startswith("failed")]
    return [f"the last start {end}" for end in ends]


def remove_run(run_dir: str) -> None:
    if "://" not in run_dir:
        shutil.rmtree(run_dir)
        return
    folder = open_folder(run_dir)
    for name in folder.names(""):
        folder.remove(name)


@contextmanager
def places(out: Path, wanted: str) -> Iterator[list[str]]:
    """Yields the parents of run folders: `out`, and a bucket of an emulator that runs while the context is open."""
    if wanted == "folder" or (wanted == "both" and bucket_available() is not None):
        yield [str(out)]
        return
    with bucket_server(out / "server", BUCKET) as url:
        os.environ[STORAGE_EMULATOR] = url
        yield [str(out), f"gs://{BUCKET}"] if wanted == "both" else [f"gs://{BUCKET}"]


def main(argv: list[str] | None = None) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.chaos", description="Disturb runs; compare what they leave.")
    parser.add_argument("out", type=Path, help="an empty or new folder")
    parser.add_argument("--runs", type=int, default=300, help="starts that are killed or stopped")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--where", choices=["folder", "bucket", "both"], default="both")
    parser.add_argument("--samples", type=int, default=12)
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    out = options.out.resolve()
    with places(out, options.where) as where:
        campaign = Campaign(out, options.runs, options.seed, options.samples, where)
        report = chaos(campaign, lambda line: print(line, file=sys.stderr))
    print(msgspec.json.format(msgspec.json.encode(report), indent=1).decode())
    return 1 if report.bad else 0
