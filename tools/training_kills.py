"""Kills training at random steps, again and again, and compares its SAEs with those of an undisturbed run.

`python -m tools.training_kills OUT_DIR --kills 30 key=value ...`: `OUT_DIR/undisturbed` is trained in one go,
`OUT_DIR/killed_NN`, whose first kill is number NN, is started after every kill from its newest checkpoint; every weight
must be the same bit by bit.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from launch.local_job import planned_commands
from launch.shell import start
from pod_job.commands.command_line import exit_status
from pod_job.config.load import load
from pod_job.errors import JobError
from pod_job.run_folder.layout import SAES_METADATA
from pod_job.run_folder.status import TrainingStatus, latest_attempt, read_status
from pod_job.storage.folder import Folder
from pod_job.storage.open import open_folder

POLL_S = 0.05
MOST_BETWEEN_KILLS = 0.25
"""Share of the undisturbed training's seconds after which a start is killed at the latest."""


def train(overrides: list[str], log: Path, kill_after_s: float | None) -> TrainingStatus | None:
    """Runs one start of all hosts; kills them `kill_after_s` seconds after the first step, where that is given.

    Returns how far it had come by its statuses.

    Raises:
        JobError: a host ended with an error of its own.
    """
    config = load(overrides)
    folder = open_folder(config.storage.run_dir)
    processes = [start(command.argv, command.env, log) for command in planned_commands(config, overrides)]
    began = None
    while any(process.poll() is None for process in processes):
        time.sleep(POLL_S)
        if kill_after_s is None:
            continue
        if began is None and is_training(log):
            began = time.monotonic()
        if began is not None and time.monotonic() - began > kill_after_s:
            end(processes)
            return progress(folder)
    if failed := [process.returncode for process in processes if process.returncode]:
        raise JobError(f"a host ended with status {failed[0]}; its log: {log}")
    return progress(folder)


def is_training(log: Path) -> bool:
    """Returns whether a host has begun to take steps, by what it logs."""
    return log.exists() and " INFO training\n" in log.read_text()


def end(processes: list[subprocess.Popen[bytes]]) -> None:
    """Kills the process groups that are still there, without a word to them."""
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    for process in processes:
        process.wait()


def progress(folder: Folder) -> TrainingStatus | None:
    attempt = latest_attempt(folder, 1)
    status = read_status(folder, 0, attempt) if attempt else None
    return status.training if status else None


def differing(expected: Path, actual: Path) -> list[str]:
    """Returns the names of the tensors that are not the same bit by bit."""
    wrong = []
    for file in sorted(expected.glob("saes/*/sae_weights.safetensors")):
        wanted, got = load_file(file), load_file(actual / file.relative_to(expected))
        wrong += [f"{file.parent.name}/{name}" for name in wanted if not np.array_equal(wanted[name], got[name])]
    return wrong


def run(out_dir: Path, kills: int, overrides: list[str], seed: int = 0) -> int:
    """Runs the trial; returns the number of tensors that differ. Trainings are begun again until all kills are done."""
    undisturbed, logs = out_dir / "undisturbed", out_dir / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    train([*overrides, f"storage.run_dir={undisturbed}"], logs / "undisturbed.log", None)
    longest_s, rng, wrong, done = (time.monotonic() - began) * MOST_BETWEEN_KILLS, random.Random(seed), [], 0
    while done < kills:
        killed = out_dir / f"killed_{done:02d}"
        while done < kills and open_folder(killed).stat(SAES_METADATA) is None:
            log = logs / f"kill_{done:02d}.log"
            at = train([*overrides, f"storage.run_dir={killed}"], log, rng.random() * longest_s)
            if open_folder(killed).stat(SAES_METADATA) is None:
                done += 1
                print(f"kill {done} of {kills}: step {at.step if at else 0}", flush=True)
        train([*overrides, f"storage.run_dir={killed}"], logs / f"{killed.name}_end.log", None)
        wrong += [f"{killed.name}/{name}" for name in differing(undisturbed, killed)]
        print(f"{killed.name}: {len(wrong)} tensors differ so far", flush=True)
    print(f"{done} kills, {len(wrong)} tensors differ" + "".join(f"\n  {name}" for name in wrong))
    return len(wrong)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns 1 where a weight differs."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.training_kills", description="Kill training at random steps."
    )
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_intermixed_args(argv)
    return int(run(options.out_dir, options.kills, options.overrides) > 0)


if __name__ == "__main__":
    sys.exit(exit_status(main))
