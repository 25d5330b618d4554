"""Damages the input of each reader by itself, thousands of times, within a limit of memory and of time.

`python -m tools.fuzz.readers --inputs 20000` prints a table: reader, inputs, how many were read, how many refused, the
memory that the process took at most, failures. Each input must be read, or refused by one line of a JobError; where its
content has a checksum, what is read must be the original. Anything else is a failure: another exception, lines, a
MemoryError, a hang, a process that ends.
"""

import argparse
import concurrent.futures
import logging
import multiprocessing
import random
import re
import resource
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pod_job.errors import JobError
from tools.fuzz.memory import data_bytes, limited_data
from tools.fuzz.mutate import mutate
from tools.fuzz.reader_targets import TARGETS, Target
from tools.fuzz.scratch import own_scratch

SLICE = 500
"""Inputs that one process tries."""
SPARE_BYTES = 1 << 30
"""Memory that the readers of a process may take in all, beyond what it has when it begins."""
OUT_OF_MEMORY = "MemoryError|(malloc|realloc) of size"
"""Messages of Python and pyarrow for an allocation that fails."""
HANG_S, HANG_CPU_S = 120, 30
"""Seconds of one input after which Python is interrupted, and CPU time after which the process ends."""


class Tried(NamedTuple):
    """Outcomes of a slice by their names, failures by the number of their input, and bytes taken beyond the start."""

    outcomes: Counter[str]
    failures: dict[int, str]
    most_bytes: int


@dataclass
class Row:
    """A row of the table: one reader."""

    inputs: int
    outcomes: Counter[str]
    failures: dict[int, str]
    most_bytes: int = 0

    def add(self, numbers: range, tried: Tried | None) -> None:
        if tried is None:
            self.failures[numbers.start] = f"the process ended in one of {len(numbers)} inputs"
            return
        self.outcomes.update(tried.outcomes)
        self.failures |= tried.failures
        self.most_bytes = max(self.most_bytes, tried.most_bytes)


def try_input(target: Target, root: Path, number: int, seed: int) -> str:
    """Returns what the reader makes of one damaged input: `read`, `refused`, or a failure in capitals."""
    rng = random.Random(f"{target.name}/{seed}/{number}")
    path = rng.choice(target.files(root))
    before = path.read_bytes()
    damaged = target.damage(before, rng) if target.damage else mutate(before, rng)
    path.write_bytes(damaged)
    try:
        content = target.read(root, path)
    except JobError as error:
        if re.search(OUT_OF_MEMORY, str(error)):
            return f"MEMORY {error}"[:300]
        return "refused" if "\n" not in str(error) else f"LINES {error}"[:300]
    except Exception as error:
        return f"CRASH {type(error).__name__}: {error}"[:300]
    finally:
        path.write_bytes(before)
    return "read" if not target.checked or content == target.read(root, path) else "WRONG DATA"


def try_slice(name: str, numbers: range, seed: int) -> Tried:
    """Tries inputs of one reader, in a folder and under limits of this process's own."""

    def hang(*_: object) -> None:
        raise TimeoutError(f"no answer within {HANG_S} s")

    signal.signal(signal.SIGALRM, hang)
    logging.disable(logging.WARNING)  # of readers that tolerate damage
    outcomes, failures = Counter[str](), {}
    with tempfile.TemporaryDirectory() as scratch:
        root, target = Path(scratch), TARGETS[name]
        target.make(root)
        target.read(root, target.files(root)[0])  # imports, caches
        begun = peak_bytes()
        with limited_data(data_bytes() + SPARE_BYTES):
            for number in numbers:
                signal.alarm(HANG_S)
                signal.setitimer(signal.ITIMER_VIRTUAL, HANG_CPU_S)
                try:
                    outcome = try_input(target, root, number, seed)
                finally:
                    signal.alarm(0)
                    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
                outcomes[outcome.split()[0]] += 1
                if outcome.split()[0].isupper():
                    failures[number] = outcome
    logging.disable(logging.NOTSET)
    return Tried(outcomes, failures, peak_bytes() - begun)


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def fuzz(name: str, inputs: int, seed: int, workers: int = 2) -> Row:
    """Tries so many inputs of one reader, each slice in a process of its own."""
    row = Row(inputs, Counter(), {})
    slices = [range(start, min(start + SLICE, inputs)) for start in range(0, inputs, SLICE)]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tools.fuzz.reader_targets"])

    def run(numbers: range) -> tuple[range, Tried | None]:
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
            future = pool.submit(try_slice, name, numbers, seed)
            try:
                return numbers, future.result()
            except concurrent.futures.process.BrokenProcessPool:
                return numbers, None

    threads = concurrent.futures.ThreadPoolExecutor(workers)
    try:
        for numbers, tried in threads.map(run, slices):
            row.add(numbers, tried)
    finally:
        threads.shutdown(cancel_futures=True)
    return row


def table_line(name: str, row: Row) -> str:
    counts, memory = row.outcomes, f"{row.most_bytes >> 20} MiB"
    return f"| {name} | {row.inputs:,} | {counts['read']:,} | {counts['refused']:,} | {memory} | {len(row.failures)} |"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.fuzz.readers", description="Damage what each reader reads.")
    parser.add_argument("--inputs", type=int, default=20_000, help="of each reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("readers", nargs="*", metavar="READER", help=f"all, or some of: {', '.join(TARGETS)}")
    options = parser.parse_args(argv)
    print("| reader | inputs | read | refused | memory | failures |\n|---|---|---|---|---|---|")
    failed = False
    with own_scratch():
        for name in options.readers or TARGETS:
            row = fuzz(name, options.inputs, options.seed, options.workers)
            print(table_line(name, row), flush=True)
            for number, outcome in list(row.failures.items())[:20]:
                print(f"{name}, input {number}: {outcome}", file=sys.stderr, flush=True)
            failed |= bool(row.failures)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
