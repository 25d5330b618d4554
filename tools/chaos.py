"""Kills pods at random and at every step of the commit protocol, and shows that the finished dataset never suffers.

`python -m tools.chaos OUT_DIR --runs 300` plays scenarios (tools/chaos_plan.py): starts of the real job, with a tiny
model on changing hosts and meshes, that are killed, or stopped and woken up too late, or made twice at once; then one
that may finish. Folders and, where there is an emulator, buckets take turns. Each dataset is verified and compared row
by row with that of an undisturbed run. The result is JSON on stdout; exit status 0 when nothing was lost, doubled or
mixed.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from launch.local import coordinator_address
from launch.pod import new_attempt
from pod_job.dataset import ActivationDataset
from pod_job.environment import STORAGE_EMULATOR, local_host
from pod_job.errors import JobError
from pod_job.storage import open_folder
from pod_job.verify import verify
from tools.bucket import bucket_available, bucket_server
from tools.chaos_host import host_main
from tools.chaos_plan import SHAPES, Scenario, Start, scenarios
from tools.tiny_model import write_tiny_model

LAYERS = (0, 2)
PER_BATCH = 2
BUCKET = "chaos"
HANG_S = 180.0
"""A start that has not ended by then hangs, which is a failure."""
POLL_S = 0.05
TOLERANCE = 1e-4
"""Relative; another mesh adds in another order."""
CONTEXT = multiprocessing.get_context("forkserver")

Dataset = tuple[dict[str, np.ndarray], list[np.ndarray]]


class Pod:
    """The processes of one start."""

    def __init__(self, start: Start, overrides: Sequence[str], log: Path) -> None:
        shape, attempt, coordinator = start.shape, new_attempt(), coordinator_address(0)
        self.start, self.log = start, log
        self.began = time.monotonic()
        settings = [
            *overrides,
            *(f"pod.hosts={shape.hosts}", f"pod.devices_per_host={shape.devices}", f"sharding={shape.sharding}"),
            *(f"mesh.data={shape.data}", f"mesh.model={shape.model}"),
        ]
        self.hosts = []
        for host in range(shape.hosts):
            fault = start.fault if host == start.host else None
            env = local_host(host, shape.devices, coordinator, attempt) | emulator()
            self.hosts.append(CONTEXT.Process(target=host_main, args=(settings, env, fault, log)))
            self.hosts[-1].start()

    def wait(self) -> str:
        """Until all hosts have ended or one was hit: `finished`, `killed`, `stopped`, or `failed` with its status."""
        while True:
            codes = [host.exitcode for host in self.hosts]
            if all(code == 0 for code in codes):
                return "finished"
            if any(code == -signal.SIGKILL for code in codes):
                return self.end("killed")
            if failed := [code for code in codes if code]:
                return self.end(f"failed with {failed[0]}")
            if any(host.pid and state(host.pid) == "T" for host in self.hosts):
                return "stopped"
            passed = time.monotonic() - self.began
            if self.start.kill_after_s is not None and passed > self.start.kill_after_s:
                return self.end("killed")
            if passed > HANG_S:
                return self.end("hanging")
            time.sleep(POLL_S)

    def end(self, outcome: str) -> str:
        for host in self.hosts:
            host.kill()
            host.join()
        return outcome

    def wake(self) -> str:
        """Lets stopped hosts go on."""
        for host in self.hosts:
            if host.pid and host.exitcode is None:
                os.kill(host.pid, signal.SIGCONT)
        return self.wait()


def emulator() -> dict[str, str]:
    """What a host has to know of the bucket emulator; processes are forked from one that was there before it."""
    return {name: os.environ[name] for name in [STORAGE_EMULATOR] if name in os.environ}


def state(pid: int) -> str:
    """The kernel's letter for what a process does: T is stopped; empty where it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):  # before, or while it was read
        return ""


def play(scenario: Scenario, overrides: Sequence[str], log: Path) -> list[tuple[Start, str]]:
    """Plays a scenario to its end; what became of each start, in order. No process outlives it."""
    outcomes, stopped, last = [], [], []
    try:
        for start in scenario.disturbed:
            stopped.append(Pod(start, overrides, log))
            outcomes.append((start, stopped[-1].wait()))
            if outcomes[-1][1] != "stopped":
                stopped.pop()
        last += [Pod(start, overrides, log) for start in scenario.last]
        outcomes += [(pod.start, pod.wait()) for pod in last]
        outcomes += [(pod.start, f"woke up and {pod.wake()}") for pod in stopped]
    finally:
        for pod in (*stopped, *last):
            pod.end("ended")
    return outcomes


def read_dataset(run_dir: str | Path) -> Dataset:
    """Provenance of all rows, and the vectors of every tap."""
    datasets = [ActivationDataset(run_dir, layer) for layer in LAYERS]
    return datasets[0].rows(slice(None)), [dataset[:] for dataset in datasets]


def problems_of(run_dir: str | Path, truth: Dataset) -> list[str]:
    """What is wrong with a finished dataset; empty where nothing is."""
    report = verify(run_dir)
    if not report.sound:
        return [*report.problems, f"missing batches: {report.missing}"]
    rows, taps = read_dataset(run_dir)
    found = [name for name in rows if not np.array_equal(rows[name], truth[0][name])]
    for layer, vectors, expected in zip(LAYERS, taps, truth[1], strict=True):
        if not np.allclose(vectors, expected, rtol=TOLERANCE, atol=TOLERANCE):
            found.append(f"layer_{layer}")
    return [f"{name} differs from the undisturbed run" for name in found]


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
    CONTEXT.set_forkserver_preload(["tools.chaos_host"])
    overrides, undisturbed = job(out, samples), out / "undisturbed"
    quiet = Scenario((), (Start(SHAPES[0]),))
    [(_, outcome)] = play(quiet, [*overrides, f"storage.run_dir={undisturbed}"], out / "undisturbed.log")
    if outcome != "finished":
        raise JobError(f"the undisturbed run {outcome}; its log is {out}/undisturbed.log")
    truth = read_dataset(undisturbed)
    outcomes: Counter[str] = Counter()
    steps: Counter[str] = Counter()
    where: Counter[str] = Counter()
    bad, disturbed, twice = [], 0, 0
    for number, scenario in enumerate(scenarios(seed)):
        if disturbed >= runs:
            break
        place = places[number % len(places)] if places else str(out)
        run_dir, log = f"{place}/run_{number:04d}", out / f"run_{number:04d}.log"
        played = play(scenario, [*overrides, f"storage.run_dir={run_dir}"], log)
        hit = [(start, outcome) for start, outcome in played if outcome in ("killed", "stopped")]
        steps.update(f"{outcome} at {start.fault.step if start.fault else 'random'}" for start, outcome in hit)
        outcomes.update(outcome for _, outcome in played)
        disturbed += len(hit)
        where[place.partition("://")[0] if "://" in place else "folder"] += len(hit)
        twice += len(scenario.last) > 1
        ended = [outcome for _, outcome in played[len(scenario.disturbed) :]][: len(scenario.last)]
        found = [f"the last start {outcome}" for outcome in ended if outcome != "finished"]
        found += problems_of(run_dir, truth)
        say(f"{number}: {', '.join(outcome for _, outcome in played)}: {'; '.join(found) or 'sound'}")
        if found:
            bad.append({"scenario": number, "problems": found, "log": str(log)})
        else:
            forget(run_dir)
    counts = {"disturbed": disturbed, "outcomes": dict(outcomes), "steps": dict(sorted(steps.items()))}
    counts |= {"disturbed_in": dict(where), "finished_by_two_pods_at_once": twice}
    return {**counts, "rows_of_each_dataset": len(truth[1][0]), "bad": bad}


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


if __name__ == "__main__":
    sys.exit(main())
