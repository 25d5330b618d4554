"""`python -m tools.bench [CASE ...]`: measures cases of the table, prints them, and writes docs/benchmarks.md.

A case is named in full or by its beginning; without a name those of docs/benchmarks.md are measured, and the page is
written. Every answer is kept in runs/bench/results.json: the same command goes on where it was interrupted.
"""

import argparse
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from pod_job.commands.command_line import exit_status
from pod_job.errors import JobError
from tools.bench.cases import CASES, Case
from tools.bench.measure import Command, OutOfTime, measure
from tools.bench.page import page, shown
from tools.bench.results import Results, read_results, write_results

FOLDER = Path("runs/bench")
RESULTS = FOLDER / "results.json"
PAGE = Path("docs/benchmarks.md")
UNFINISHED = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line. Returns 3 where `--minutes` were not enough."""
    options = parser().parse_args(argv)
    cases = chosen(options.cases, every=options.list)
    if options.list:
        print("\n".join(map(described, cases)))
        return 0
    if wrong := [setting for setting in options.set if "=" not in setting]:
        raise JobError(f"--set {wrong[0]}: is not KEY=VALUE; use one of the keys that --list shows")
    settings, until = dict(setting.split("=", 1) for setting in options.set), time.monotonic() + 60 * options.minutes
    FOLDER.mkdir(parents=True, exist_ok=True)
    command = Command(options.rounds, settings, options.only, options.scratch, until, FOLDER)
    results, names = read_results(RESULTS), [case.name for case in cases]
    results.begin(names, options.rounds, settings, options.only)
    for case in cases:
        try:
            measure(case, command, results, lambda: write_results(RESULTS, results))
        except OutOfTime:
            print(f"unfinished: the same command goes on; kept in {RESULTS}", file=sys.stderr)
            return UNFINISHED
        print(shown(case, results), flush=True)
    results.unfinished = []
    write_results(RESULTS, results)
    if options.json:
        records = [record for record in results.records if record.case in names]
        write_results(options.json, Results(rounds=options.rounds, settings=settings, records=records))
    if options.page or not options.cases:
        PAGE.write_text(page(results))
        print(PAGE)
    return 0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m tools.bench", description=__doc__)
    made.add_argument("cases", nargs="*", metavar="CASE", help="see --list; by default those of docs/benchmarks.md")
    made.add_argument("--list", action="store_true", help="show the table of cases and measure nothing")
    made.add_argument("--json", type=Path, metavar="FILE", help="write the records of these cases")
    made.add_argument("--minutes", type=float, default=math.inf, help="stop after these; the same command goes on")
    made.add_argument("--rounds", type=int, default=0, help="by default each case's own number")
    made.add_argument("--only", default="", metavar="TEXT", help="variants with this text in their names")
    made.add_argument("--set", action="append", default=[], metavar="OPTION=VALUE", help="an option of the workload")
    made.add_argument("--scratch", type=Path, help="a folder on the disk to measure")
    made.add_argument("--page", action="store_true", help="write docs/benchmarks.md from all that is kept")
    return made


def chosen(names: Sequence[str], every: bool) -> list[Case]:
    """Returns the cases that are named, in full or by their beginning. JobError for a name that is none."""
    for name in names:
        if not any(case.name.startswith(name) for case in CASES):
            raise JobError(f"CASE={name}: not a case; use one of {', '.join(case.name for case in CASES)}")
    if not names:
        return [case for case in CASES if every or case.on_page]
    in_full = {case.name for case in CASES} & set(names)
    beginnings = tuple(set(names) - in_full)
    return [case for case in CASES if case.name in in_full or case.name.startswith(beginnings)]


def described(case: Case) -> str:
    """Returns the case's row of the table as lines for people."""
    needs = [f"  needs {', '.join(case.all_needs)}"] if case.all_needs else []
    figures = [f"  {figure.name}{figure.wanted}" for figure in case.figures]
    return "\n".join([f"{case.name}: {case.question}", f"  {', '.join(case.variants)}", *needs, *figures])


if __name__ == "__main__":
    sys.exit(exit_status(main))
