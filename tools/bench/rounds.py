"""Extraction by every way, in rounds that go through all of them in turn; what has been answered is kept by the caller.

Each workload has worker processes of its own, so that peak memory is that of the workload.
"""

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tools.peers import make, quiet_environment

# Of the module in tools.bench.ways: the environment it runs in; None is this one. The first is what others are
# compared with.
WAYS = {
    "hugging_face": "hugging-face",
    "ours": None,
    "transformer_lens": "transformer-lens",
    "nnsight": "nnsight",
    "sae_lens": "sae-lens",
    "document": "hugging-face",
}
TAPS = {"one tap": [12], "four taps": [6, 12, 18, 24]}
WORKLOADS = {f"{taps}, {positions}": (taps, positions) for positions in ("all", "last") for taps in TAPS}
ANSWER_S = 300.0  # at most, loading and compiling included


class OutOfTime(Exception):
    """The minutes that were given are over; what is kept goes on from here."""


def measure(
    title: str,
    answers: dict[str, list[Any]],
    rounds: int,
    folder: Path,
    model: Path,
    keep: Callable[[], None],
    until: float,
) -> None:
    """Fills up `answers` (way -> one per round) of a workload, calling `keep` after each.

    Raises:
        OutOfTime: `until`, a monotonic time, has come.
    """
    taps, positions = WORKLOADS[title]
    reference = (folder / f"{taps}-{positions}.npy".replace(" ", "-")).absolute()
    job = {"layers": TAPS[taps], "positions": positions, "reference": str(reference)}
    if not any(answers.values()):
        reference.unlink(missing_ok=True)
    with ExitStack() as open_workers:
        workers: dict[str, subprocess.Popen[str]] = {}
        for number in range(1, rounds + 1):
            for name in WAYS:
                found = answers.setdefault(name, [])
                if len(found) >= number or (found and "failed" in found[-1]):
                    continue
                if time.monotonic() > until:
                    raise OutOfTime
                if name not in workers:
                    workers[name] = open_workers.enter_context(worker(name, folder, model))
                    open_workers.callback(workers[name].kill)
                found.append(ask(workers[name], job, ANSWER_S, folder / f"{name}.log"))
                print(f"{title}, round {number}, {name}: {found[-1]}", file=sys.stderr, flush=True)
                keep()


def worker(name: str, folder: Path, model: Path) -> subprocess.Popen[str]:
    peer = WAYS[name]
    python = sys.executable if peer is None else str(make(peer))
    prompts, scratch = folder / "prompts.json", (folder / name).absolute()
    argv = [python, "-m", "tools.bench.worker", name, str(model), str(prompts), str(scratch)]
    # Idle threads sleep rather than spin: their waiting is not work.
    environment = quiet_environment() | {"OMP_WAIT_POLICY": "PASSIVE"}
    with (folder / f"{name}.log").open("w") as log:
        return subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
        )


def ask(process: subprocess.Popen[str], job: dict[str, Any], limit_s: float, log: Path) -> dict[str, Any]:
    """The worker's answer; `failed` with the reason where it ends or says nothing in time, and then it is no more."""
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(BrokenPipeError):  # it has ended: so will its answer
        os.write(process.stdin.fileno(), f"{json.dumps(job)}\n".encode())
    if not select.select([process.stdout], [], [], limit_s)[0]:
        process.kill()
        return {"failed": f"no answer in {limit_s:.0f} s"}
    if line := process.stdout.readline():
        return json.loads(line)
    process.wait()
    return {"failed": (log.read_text().strip().splitlines() or [f"exit status {process.returncode}"])[-1]}
