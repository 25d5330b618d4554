"""Kills pods at random and at every step of the commit protocol, and shows that the finished dataset never suffers.

`python -m tools.chaos OUT_DIR --runs 300` plays scenarios (tools/chaos_plan.py): starts of the real job, with a tiny
model on changing hosts and meshes, that are killed, or stopped and woken up too late, or made twice at once; then one
that may finish; then compactions, disturbed likewise, and a last one that may finish. Folders and, where there is an
emulator, buckets take turns. Each dataset is verified and compared row by row with that of an undisturbed run, when the
job is through, after each compaction that was disturbed, and compacted. The result is JSON on stdout; exit status 0
when nothing was lost, doubled or mixed.
"""

import argparse
import json
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pod_job.environment import STORAGE_EMULATOR
from pod_job.errors import JobError
from pod_job.storage.open import open_folder
from tools.bucket import bucket_available, bucket_server
from tools.chaos.processes import CONTEXT
from tools.chaos.run_scenario import LAYERS, Played, play, read_dataset
from tools.chaos.scenarios import SHAPES, Scenario, Start, scenarios
from tools.tiny_model import write_tiny_model

PER_BATCH = 2
BUCKET = "chaos"


def job(out: Path, samples: int) -> list[str]:
    """The overrides of the job that is disturbed, without its run folder."""
    model = write_tiny_model(out / "model", mlp=64)
    return [
        *(f"model.path={model}", "model.dtype=float32", "tasks=arc_sample", f"tasks.limit={samples}"),
        *("extract=all_tokens", "extract.dtype=float32", "extract.seq_len=256", "extract.too_long=cut"),
        *(f"extract.layers=[{','.join(map(str, LAYERS))}]", f"extract.save_every_n_samples={PER_BATCH}"),
        *(f"storage.compile_cache={out}/compile_cache", "pod.arrival_timeout_s=60", "parity.samples=0"),
    ]


def chaos(
    out: Path, runs: int, seed: int, samples: int, say: Callable[[str], None], places: Sequence[str] = ()
) -> dict[str, Any]:
    """Plays scenarios until `runs` starts were killed or stopped; what happened, as JSON values.

    Run folders lie in `places` in turn: under `out` where none is given.
    """
    CONTEXT.set_forkserver_preload(["tools.chaos.host"])
    overrides, undisturbed = job(out, samples), out / "undisturbed"
    quiet = Scenario((), (Start(SHAPES[0]),))
    settings = [*overrides, f"storage.run_dir={undisturbed}"]
    [(_, outcome)] = play(quiet, settings, str(undisturbed), out / "undisturbed.log").outcomes
    if outcome != "finished":
        raise JobError(f"the undisturbed run {outcome}; its log is {out}/undisturbed.log")
    truth = read_dataset(undisturbed)
    told, bad = Told(), []
    for number, scenario in enumerate(scenarios(seed)):
        if told.disturbed >= runs:
            break
        place = places[number % len(places)] if places else str(out)
        run_dir, log = f"{place}/run_{number:04d}", out / f"run_{number:04d}.log"
        played = play(scenario, [*overrides, f"storage.run_dir={run_dir}"], run_dir, log, truth)
        told.add(scenario, played, place.partition("://")[0] if "://" in place else "folder")
        found = unfinished(scenario, played) + played.problems
        say(f"{number}: {', '.join(outcome for _, outcome in played.outcomes)}: {'; '.join(found) or 'sound'}")
        if found:
            bad.append({"scenario": number, "problems": found, "log": str(log)})
        else:
            forget(run_dir)
    return {**told.counts(), "rows_of_each_dataset": len(truth[1][0]), "bad": bad}


def unfinished(scenario: Scenario, played: Played) -> list[str]:
    """Which of the last starts did not finish, though they should have."""
    ended = [outcome for outcome in played.ended(scenario.last) if outcome != "finished"]
    if scenario.beside and len(scenario.last) > 1:
        # One of two pods may be told that the files of a batch, which the other one has committed, were compacted away.
        ended = [outcome for outcome in ended if not outcome.startswith("failed")]
    return [f"the last start {outcome}" for outcome in ended]


@dataclass
class Told:
    """Counts over all scenarios. `disturbed`: starts that were killed or stopped."""

    disturbed: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    steps: Counter[str] = field(default_factory=Counter)
    where: Counter[str] = field(default_factory=Counter)
    compactions: Counter[str] = field(default_factory=Counter)
    compaction_steps: Counter[str] = field(default_factory=Counter)
    twice: int = 0
    beside: int = 0

    def add(self, scenario: Scenario, played: Played, where: str) -> None:
        for what, outcome in played.outcomes:
            of_pod = isinstance(what, Start)
            (self.outcomes if of_pod else self.compactions)[outcome] += 1
            if outcome in ("killed", "stopped"):
                step = f"{outcome} at {what.fault.step if what.fault else 'random'}"
                (self.steps if of_pod else self.compaction_steps)[step] += 1
                self.disturbed += of_pod
                self.where[where] += of_pod
        self.twice += len(scenario.last) > 1
        self.beside += scenario.beside is not None

    def counts(self) -> dict[str, Any]:
        of_pods = {"disturbed": self.disturbed, "outcomes": self.outcomes, "steps": dict(sorted(self.steps.items()))}
        of_pods |= {"disturbed_in": self.where, "finished_by_two_pods_at_once": self.twice}
        steps = dict(sorted(self.compaction_steps.items()))
        disturbed = sum(steps.values())
        compactions = {"disturbed": disturbed, "outcomes": self.compactions, "steps": steps, "beside_pods": self.beside}
        return of_pods | {"compactions": compactions}


def forget(run_dir: str) -> None:
    if "://" not in run_dir:
        shutil.rmtree(run_dir)
        return
    folder = open_folder(run_dir)
    for name in folder.names(""):
        folder.remove(name)


@contextmanager
def places(out: Path, wanted: str) -> Iterator[list[str]]:
    """Where runs lie: under `out`, and in a bucket of an emulator that is there meanwhile."""
    if wanted == "folder" or (wanted == "both" and bucket_available() is not None):
        yield [str(out)]
        return
    with bucket_server(out / "server", BUCKET) as url:
        os.environ[STORAGE_EMULATOR] = url
        yield [str(out), f"gs://{BUCKET}"] if wanted == "both" else [f"gs://{BUCKET}"]


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.chaos", description="Disturb runs; compare what they leave.")
    parser.add_argument("out", type=Path, help="an empty or new folder")
    parser.add_argument("--runs", type=int, default=300, help="starts that are killed or stopped")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--where", choices=["folder", "bucket", "both"], default="both")
    parser.add_argument("--samples", type=int, default=12)
    options = parser.parse_args(argv)
    began = time.monotonic()
    options.out.mkdir(parents=True, exist_ok=True)
    out = options.out.resolve()

    def tell(line: str) -> None:
        print(line, file=sys.stderr)

    try:
        with places(out, options.where) as where:
            result = chaos(out, options.runs, options.seed, options.samples, tell, where)
    except JobError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps({**result, "seconds": round(time.monotonic() - began)}, indent=1))
    return 1 if result["bad"] else 0
