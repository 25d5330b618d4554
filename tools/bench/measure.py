"""Measures a case: rounds go through its variants in turn, each measurement is a new process, each answer is kept."""

import contextlib
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from pod_job.environment import BLAS_THREADS, COMPILE_ONLY, STORAGE_EMULATOR
from pod_job.errors import JobError
from tools.bench.cases import BUCKET, EMULATOR, GPU, LIBTPU, Case
from tools.bench.results import Answer, Results
from tools.bucket import bucket_available, bucket_server
from tools.peers import make, quiet_environment

# Idle threads sleep: threads that wait in a loop count as CPU time.
ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", BLAS_THREADS: "1"}
ENVIRONMENTS = {
    GPU: {"JAX_PLATFORMS": "cuda,cpu", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
    LIBTPU: COMPILE_ONLY,
}


class OutOfTime(Exception):
    """The command has used its minutes; the same command continues from the results so far."""


@dataclass(frozen=True)
class Command:
    """Options of the command line.

    Attributes:
        rounds: 0 stands for each case's own number.
        settings: options of the workload that differ from those of the table.
        only: variants with this text in their names.
        scratch: a folder on the disk to measure; None for the system's.
        until: a monotonic time.
        logs: folder of the processes' logs.
    """

    rounds: int
    settings: Mapping[str, str]
    only: str
    scratch: Path | None
    until: float
    logs: Path


def measure(case: Case, command: Command, results: Results, keep: Callable[[], None]) -> None:
    """Adds what is missing in the results of a case, and calls `keep` after each answer.

    Raises:
        OutOfTime: the command's time is over.
        JobError: the inputs of the case cannot be made.
    """
    rounds = command.rounds or case.rounds
    variants = [name for name in case.variants if command.only in name and not results.failure(case.name, name)]
    for name in variants:
        if reason := unmet(case.needs_of(name)):
            results.add(case.name, name, Answer(failed=reason))

    def missing(name: str) -> int:
        return 0 if results.failure(case.name, name) else rounds - len(results.values(case.name, name, "wall_s"))

    if all(missing(name) <= 0 for name in variants):
        return
    options = json.dumps({**case.options, **command.settings})
    if command.scratch is not None:
        command.scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=command.scratch) as name, services(case, Path(name)) as env:

        def ask(variant: str) -> Answer:
            """Runs the worker; the variant `inputs` makes what all others share."""
            log = command.logs / f"{case.name}-{''.join(letter if letter.isalnum() else '-' for letter in variant)}.log"
            peer = case.peers.get(variant)
            python = sys.executable if peer is None else str(make(peer))
            argv = [python, "-m", "tools.bench.worker", case.workload, variant, options, name]
            return answer_of(argv, env, case.limit_s, log)

        if reason := ask("inputs").failed:
            raise JobError(f"{case.name}: its inputs cannot be made: {reason}; logs are in {command.logs}")
        for turn in range(rounds, 0, -1):
            for variant in [variant for variant in variants if missing(variant) >= turn]:
                if time.monotonic() > command.until:
                    raise OutOfTime
                answer = ask(variant)
                results.add(case.name, variant, answer)
                shown = answer.failed or {metric: round(value, 4) for metric, value in answer.metrics.items()}
                print(f"{case.name}, {rounds - turn + 1} of {rounds}, {variant}: {shown}", file=sys.stderr, flush=True)
                keep()


@contextlib.contextmanager
def services(case: Case, scratch: Path) -> Iterator[dict[str, str]]:
    """Yields the environment of the case's processes; a bucket is served meanwhile where the case has use for one."""
    env = quiet_environment() | ENVIRONMENT
    for need in case.needs:
        env |= ENVIRONMENTS.get(need, {})
    if EMULATOR not in case.all_needs or bucket_available() is not None:
        yield env
        return
    with bucket_server(scratch / "server", BUCKET) as endpoint:
        yield env | {STORAGE_EMULATOR: endpoint}


def answer_of(argv: Sequence[str], env: Mapping[str, str], limit_s: float, log: Path) -> Answer:
    """Returns a worker's answer; `failed` where it takes too long, with the last line of its log where it fails."""
    with log.open("w") as output:
        try:
            done = subprocess.run(
                argv, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=output, timeout=limit_s
            )
        except subprocess.TimeoutExpired:
            return Answer(failed=f"no answer in {limit_s:.0f} s")
    if done.returncode:
        return Answer(failed=(log.read_text().strip().splitlines() or [f"exit status {done.returncode}"])[-1])
    return msgspec.json.decode(done.stdout, type=Answer)


def unmet(needs: list[str]) -> str:
    """Returns why this machine does not have one of the needs; empty where it has them."""
    reasons = {
        EMULATOR: bucket_available(),
        GPU: None if shutil.which("nvidia-smi") else "no NVIDIA GPU",
        LIBTPU: None if importlib.util.find_spec("libtpu") else "libtpu is not installed",
    }
    return next((reason for need in needs if (reason := reasons[need])), "")
