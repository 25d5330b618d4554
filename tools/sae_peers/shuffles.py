"""Trains SAEs on a stream, and on the same vectors stored and shuffled as a whole; compares what they explain.

`python -m tools.sae_peers.shuffles OUT_DIR --held-out 65536 key=value ...`: overrides of a stream's training in one
process, of fields alone (no `experiment=`). Ways: `stream`; `shuffled`, trained on a run that `pod-job shuffle` wrote;
`stored`, on the run as extracted, whose blocks are permuted; `unmixed`, a stream whose buffer holds a single batch. All
take the same number of steps. Evaluated on documents after `tasks.limit`; prints JSON, one way a line, with each SAE's
explained variance.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from pod_job.commands.command_line import exit_status
from pod_job.config.load import load
from pod_job.errors import JobError
from pod_job.run_folder.training import read_metrics
from pod_job.storage.open import open_folder

ONE_PROCESS = ("pod.kind=local", "pod.hosts=1", "pod.devices_per_host=1", "mesh.data=1", "mesh.model=1")
WAYS = ("stream", "shuffled", "stored", "unmixed")


def command(module: str, *arguments: str) -> str:
    """Runs a module with these arguments; returns what it prints. JobError where it fails."""
    done = subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise JobError(
            f"python -m {module} failed: {' | '.join((done.stderr or done.stdout).strip().splitlines()[-3:])}"
        )
    return done.stdout


def train(out: Path, way: str, overrides: Sequence[str]) -> Path:
    """Trains in this way; returns the run folder."""
    of_training = [item for item in overrides if item.startswith("train.")]
    others = [item for item in overrides if not item.startswith("train.")]
    settings, run_dir = load(["mode=train", *overrides, f"storage.run_dir={out / way}"]).train, out / way
    common = [*ONE_PROCESS, "mode=train", f"storage.run_dir={run_dir}", *of_training]
    if way in ("stream", "unmixed"):
        buffer = [f"train.buffer_rows={settings.batch_rows}"] if way == "unmixed" else []
        command("pod_job", *common, *others, *buffer)
        return run_dir
    taps = sorted({tap for spec in settings.specs for tap in spec.inputs_and_target})
    vectors, shuffled = out / "vectors", out / "vectors-shuffled"
    if not vectors.exists():
        layers = f"extract.layers=[{','.join(tap.removeprefix('layer_') for tap in taps)}]"
        command("pod_job", *ONE_PROCESS, *others, layers, "extract.positions=all", f"storage.run_dir={vectors}")
    if way == "shuffled" and not shuffled.exists():
        command("launch", "shuffle", str(vectors), str(shuffled))
    source = shuffled if way == "shuffled" else vectors
    command("pod_job", *common, "train.source=run", f"train.run={source}")
    return run_dir


def explained(run_dir: Path, overrides: Sequence[str], held_out: int) -> dict[str, float]:
    """Returns the explained variance of each SAE on documents that were not trained on."""
    config = load(["mode=train", *overrides, f"storage.run_dir={run_dir}"])
    about = [item for item in overrides if item.startswith(("model.", "tasks.", "extract."))]
    skip = ["--skip", str(config.tasks.limit), "--tokens", str(held_out)]
    about = [item for item in about if not item.startswith("tasks.limit")]
    printed = command("launch", "evaluate", str(run_dir), *about, *skip, "--json")
    return {sae["name"]: sae["explained_variance"] for sae in json.loads(printed)["saes"]}


def rate(run_dir: Path) -> float:
    """Returns rows per second over the second half of the training; 0 where it has too few points."""
    metrics = read_metrics(open_folder(run_dir))
    assert metrics is not None
    points = metrics.points
    middle, last = points[len(points) // 2], points[-1]
    return (last.rows - middle.rows) / (last.seconds - middle.seconds) if last.seconds > middle.seconds else 0.0


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.sae_peers.shuffles", description=__doc__)
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--held-out", type=int, default=65536, metavar="TOKENS")
    # Not one option with several values: it would take the overrides after it for ways.
    parser.add_argument("--way", action="append", choices=WAYS, dest="ways", help="again for more; all without it")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    given = parser.parse_intermixed_args(argv)
    for way in given.ways or WAYS:
        began = time.monotonic()
        run_dir = train(given.out_dir, way, given.overrides)
        ended = time.monotonic()
        values = explained(run_dir, given.overrides, given.held_out)
        seconds = round(ended - began, 1)
        print(json.dumps({"way": way, "rows_per_s": rate(run_dir), "seconds": seconds, "saes": values}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(run))
