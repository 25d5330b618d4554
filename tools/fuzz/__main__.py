"""Damages every kind of file that is read here, thousands of times, and records what the readers say.

`python -m tools.fuzz --inputs 10000` mutates files of a small finished run, pickle exports, model configs and command
lines. Each mutation must end with a JobError that names the file, or with the original data: what `verify` calls sound
is read and compared. A crash, a hang and wrong data are failures. The result is JSON; exit status 0 without failures.
"""

import argparse
import concurrent.futures
import multiprocessing
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import msgspec

from tools.fuzz.scratch import own_scratch
from tools.fuzz.trials import Trial, make_bench, try_one, try_slice

SLICE = 50
"""Inputs that one process tries before another goes on."""


class Failure(msgspec.Struct):
    """An input whose outcome is a failure; its number and the seed reproduce it."""

    input: int
    outcome: str


class Report(msgspec.Struct):
    """Counts of outcomes by kind of file, and every failure."""

    inputs: int
    seed: int
    outcomes: dict[str, int]
    failures: list[Failure]


def fuzz(inputs: int, seed: int, workers: int = 2) -> Report:
    """Tries so many inputs in processes of their own."""
    outcomes: Counter[str] = Counter()
    failures = []
    slices = [range(start, min(start + SLICE, inputs)) for start in range(0, inputs, SLICE)]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tools.fuzz.trials"])
    for numbers, trials in in_processes(slices, seed, workers, context):
        if trials is None:
            failures.append(Failure(numbers.start, f"the process died in one of {len(numbers)} inputs"))
            continue
        failures += [Failure(trial.number, trial.outcome) for trial in trials if trial.failed]
        outcomes.update(f"{trial.kind}: {'FAILED' if trial.failed else trial.outcome}" for trial in trials)
    return Report(inputs, seed, dict(sorted(outcomes.items())), failures)


def in_processes(
    slices: Sequence[range], seed: int, workers: int, context: Any
) -> Iterator[tuple[range, list[Trial] | None]]:
    """Yields each slice with its trials, or None where its process died.

    A process that dies takes the whole pool with it: the other slices are tried again, each in a pool of its own.
    """
    again = []
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
        tried = {pool.submit(try_slice, numbers, seed): numbers for numbers in slices}
        for future in concurrent.futures.as_completed(tried):
            if died(future):
                again.append(tried[future])
            else:
                yield tried[future], future.result()
    for numbers in again:
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
            future = pool.submit(try_slice, numbers, seed)
            yield numbers, None if died(future) else future.result()


def died(future: concurrent.futures.Future[Any]) -> bool:
    return isinstance(future.exception(), BrokenProcessPool)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.fuzz", description="Damage files; check what readers say.")
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, default=None, metavar="INPUT", help="one input, in this process")
    options = parser.parse_args(argv)
    if options.only is not None:
        with tempfile.TemporaryDirectory() as scratch:
            print(*try_one(make_bench(Path(scratch)), options.only, options.seed))
        return 0
    with own_scratch():
        report = fuzz(options.inputs, options.seed)
    print(msgspec.json.format(msgspec.json.encode(report), indent=1).decode())
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
