"""Kills training at random steps, again and again, and compares its SAEs with those of an undisturbed run.

`python -m tools.training_kills OUT_DIR --kills 30 [--source run] [--hosts 1] [key=value ...]`: a tiny model on
hosts of two devices. One of the hosts, drawn each time, sends itself SIGKILL as it begins a step, drawn too; the others
are killed when that is seen, wherever they are. Every start goes on from the newest checkpoint, which is written while
steps go on. `OUT_DIR/killed_NN`, whose first kill is number NN, must end in the weights of `OUT_DIR/undisturbed`, bit
by bit. Trainings are begun again until all kills are done.
"""

import argparse
import itertools
import os
import random
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from launch.host_commands import new_attempt
from launch.local import coordinator_address
from pod_job.commands.command_line import exit_status
from pod_job.config.load import load
from pod_job.environment import local_host
from pod_job.errors import JobError
from pod_job.run_folder.training import read_training
from pod_job.storage.open import open_folder
from pod_job.training.checkpoints import latest_checkpoint
from pod_job.training.train import Training
from tools.chaos.host import host_main
from tools.chaos.processes import CONTEXT, Running
from tools.chaos.scenarios import Shape, Start
from tools.tiny_model import write_tiny_model

DEVICES = 2
FARTHEST = 15
"""Steps after its beginning in which a start is killed at the latest."""
HANG_S = 900.0
"""Longest run of a start, on a machine that other work keeps busy."""


def job(out: Path, source: str, hosts: int) -> list[str]:
    """Returns the overrides of the job without its run folder; makes its model and, for `run`, the run to train on."""
    model = write_tiny_model(out / "model", mlp=64)
    extraction = [
        *(f"pod.hosts={hosts}", f"pod.devices_per_host={DEVICES}", f"mesh.data={hosts}", f"mesh.model={DEVICES}"),
        *("pod.arrival_timeout_s=60", "parity.samples=0"),
        *(f"model.path={model}", "model.dtype=float32", "tasks=arc_sample", "tasks.limit=12", "extract=all_tokens"),
        *("extract.seq_len=256", "extract.too_long=tail", f"storage.compile_cache={out}/compile_cache"),
    ]
    training = [
        "mode=train",
        "train.saes=[{tap:[0,2],latents:256,k:8},{tap:2,latents:256,k:8,architecture:jump_relu,sparsity:1}]",
        *("train.steps=60", "train.batch_rows=128", "train.buffer_rows=1024", "train.statistics_rows=512"),
        *("train.epochs=99", "train.checkpoint_steps=5", "train.log_steps=5"),
    ]
    if source == "stream":
        return [*extraction, *training]
    vectors = out / "vectors"
    expect_finished([*extraction, "extract.layers=[0,2]", f"storage.run_dir={vectors}"], out / "vectors.log")
    return [*extraction, *training, "train.source=run", f"train.run={vectors}"]


@dataclass(frozen=True)
class Kill:
    """SIGKILL to a host as it begins a step, counted from 0."""

    host: int
    step: int


def run_start(overrides: Sequence[str], log: Path, kill: Kill | None = None) -> str:
    """Runs one start of all hosts; returns its end as `Running.wait` does."""
    attempt, coordinator, count = new_attempt(), coordinator_address(0), load(list(overrides)).pod.hosts
    hosts = []
    for host in range(count):
        step = kill.step if kill is not None and kill.host == host else None
        env = local_host(host, DEVICES, coordinator, attempt)
        hosts.append(CONTEXT.Process(target=training_host, args=(overrides, env, step, log)))
    shape = Shape(count, DEVICES, count, DEVICES, "replicated")
    return Running(Start(shape), hosts, HANG_S).wait()


def training_host(overrides: Sequence[str], env: Mapping[str, str], kill_step: int | None, log: Path) -> None:
    """Body of a host's process, which kills itself as it begins a step."""
    advance = Training._advance

    def advance_or_end(training: Training, state: Any, step: int, rows: Iterator[Any]) -> Any:
        if step == kill_step:
            os.kill(os.getpid(), signal.SIGKILL)
        return advance(training, state, step, rows)

    Training._advance = advance_or_end  # type: ignore[method-assign]
    host_main(overrides, env, None, log)


def expect_finished(overrides: Sequence[str], log: Path) -> None:
    """Runs a start that nothing disturbs. JobError where it does not finish."""
    if (end := run_start(overrides, log)) != "finished":
        raise JobError(f"an undisturbed start {end}; its log is {log}")


def differing(expected: Path, actual: Path) -> list[str]:
    """Returns the names of the tensors that are not the same bit by bit."""
    wrong = []
    for file in sorted(expected.glob("saes/*/sae_weights.safetensors")):
        wanted, got = load_file(file), load_file(actual / file.relative_to(expected))
        wrong += [f"{file.parent.name}/{name}" for name in wanted if not np.array_equal(wanted[name], got[name])]
    return wrong


def run(out_dir: Path, kills: int, overrides: Sequence[str], seed: int = 0) -> int:
    """Runs the trial; returns the number of tensors that differ."""
    undisturbed, rng, wrong, done = out_dir / "undisturbed", random.Random(seed), list[str](), 0
    expect_finished([*overrides, f"storage.run_dir={undisturbed}"], out_dir / "undisturbed.log")
    steps, hosts = read_training(open_folder(undisturbed)).steps, load([*overrides, "storage.run_dir=unused"]).pod.hosts
    while done < kills:
        killed = out_dir / f"killed_{done:02d}"
        settings, log = [*overrides, f"storage.run_dir={killed}"], killed.with_suffix(".log")
        for _ in itertools.count():
            newest = latest_checkpoint(open_folder(killed))
            began = newest.step if newest else 0
            kill = Kill(rng.randrange(hosts), rng.randrange(began, began + FARTHEST))
            if done == kills or kill.step >= steps:
                break
            if (end := run_start(settings, log, kill)) != "killed":
                raise JobError(f"a start that was to be killed in step {kill.step} {end}; its log is {log}")
            done += 1
            print(f"kill {done} of {kills}: host {kill.host} in step {kill.step}, begun at {began}", flush=True)
        expect_finished(settings, log)
        wrong += [f"{killed.name}/{name}" for name in differing(undisturbed, killed)]
        print(f"{killed.name}: {len(wrong)} tensors differ so far", flush=True)
    print(f"{done} kills, {len(wrong)} tensors differ" + "".join(f"\n  {name}" for name in wrong))
    return len(wrong)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns 1 where a weight differs."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.training_kills", description="Kill training at random steps."
    )
    parser.add_argument("out_dir", type=Path, help="an empty or new folder")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--source", choices=["stream", "run"], default="stream")
    parser.add_argument("--hosts", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    given = parser.parse_intermixed_args(argv)
    CONTEXT.set_forkserver_preload(["tools.chaos.host", "pod_job.training.train"])
    out_dir = given.out_dir.resolve()
    out_dir.mkdir(parents=True, exist_ok=True)
    return int(run(out_dir, given.kills, [*job(out_dir, given.source, given.hosts), *given.overrides], given.seed) > 0)


if __name__ == "__main__":
    sys.exit(exit_status(main))
