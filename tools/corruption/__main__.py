"""Spoils run folders in thousands of ways, runs every command on them, and records how it ends.

`python -m tools.corruption --runs 3000`. Each run must end with the right data, or with status 2 and one line: a
traceback, a hang, other data, a file outside the folder that is read or changed, and a control character on the
terminal are failures. The result is two tables, by command and by damage, and every failure; exit status 0 without
failures. A folder is damaged once a trial; the trial's number and the seed reproduce it (`--only`).
"""

import argparse
import faulthandler
import os
import resource
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import msgspec

from tools.corruption.commands import COMMANDS, QUICK, WAITED_S
from tools.corruption.corpus import make_corpus
from tools.corruption.trials import TOKEN, Bench, Trial, try_one
from tools.fuzz.scratch import own_scratch

MOST_MEMORY = 3 << 30
"""Bytes that a process may take; the libraries alone take one GiB."""


def try_here(numbers: Iterable[int], seed: int, only: str = "") -> Iterator[Trial]:
    """Yields the trials of these numbers, tried in this process; one that hangs in a library ends the process."""
    os.environ |= {"HF_TOKEN": TOKEN, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}  # as the corpus has its jobs
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # programs run once
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(make_corpus(Path(scratch) / "sound"))
        resource.setrlimit(resource.RLIMIT_DATA, (MOST_MEMORY, MOST_MEMORY))
        for number in numbers:
            faulthandler.dump_traceback_later(2 * WAITED_S, exit=True)
            yield try_one(bench, number, seed, only)
            faulthandler.cancel_dump_traceback_later()


def try_apart(numbers: Sequence[int], seed: int, only: str = "") -> list[Trial]:
    """Returns the trials of these numbers, tried in a process of its own; where one ends it, another goes on."""
    trials: list[Trial] = []
    while left := numbers[len(trials) :]:
        command = [sys.executable, "-m", "tools.corruption", "--seed", str(seed), "--command", only, "--try"]
        ended = subprocess.run([*command, *map(str, left)], capture_output=True, text=True, check=False)
        trials += [msgspec.json.decode(line, type=Trial) for line in ended.stdout.splitlines()]
        if len(trials) < len(numbers):
            reason = " ".join(ended.stderr.split())[-600:]
            trials.append(
                Trial(numbers[len(trials)], "unknown", "unknown", "", "", f"DIED {ended.returncode} {reason}")
            )
    return trials


def table(trials: Sequence[Trial], key: str) -> str:
    """Returns the number of trials by a field of them and by outcome, as text."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for trial in trials:
        counts[getattr(trial, key)]["FAILED" if trial.failed else trial.outcome] += 1
    outcomes = sorted(set(chain.from_iterable(counts.values())))
    width = max(map(len, (*counts, key))) + 2
    lines = [f"{key:<{width}}" + "".join(f"{outcome:>{len(outcome) + 2}}" for outcome in (*outcomes, "all"))]
    for name, row in sorted(counts.items()):
        cells = [*(row[outcome] for outcome in outcomes), row.total()]
        titles = (*outcomes, "all")
        lines.append(
            f"{name:<{width}}" + "".join(f"{cell:>{len(t) + 2}}" for cell, t in zip(cells, titles, strict=True))
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.corruption", description="Run commands on spoilt folders.")
    parser.add_argument("--runs", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    names = [QUICK, *sorted({command.name for command in COMMANDS})]
    parser.add_argument("--command", choices=["", *names], default="", metavar="NAME", help=f"of {', '.join(names)}")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="processes")
    parser.add_argument("--try", type=int, nargs="+", metavar="NUMBER", help="these only, in this process; as JSON")
    options = parser.parse_args(argv)
    if numbers := getattr(options, "try"):
        for trial in try_here(numbers, options.seed, options.command):
            print(msgspec.json.encode(trial).decode(), flush=True)
        return 0
    shares = [range(start, options.runs, options.workers) for start in range(options.workers)]
    with own_scratch(), ThreadPoolExecutor(options.workers) as pool:
        trials = [*chain.from_iterable(pool.map(lambda share: try_apart(share, options.seed, options.command), shares))]
    print(table(trials, "command"), table(trials, "damage"), sep="\n\n", end="\n\n")
    if os.geteuid() == 0:
        print("unreadable files are not tried: root reads them")
    failures = sorted((trial for trial in trials if trial.failed), key=lambda trial: trial.number)
    for trial in failures:
        print(msgspec.json.encode(trial).decode())
    print(f"{len(trials)} runs, {len(failures)} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
