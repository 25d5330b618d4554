"""Shows a run, one of its batches, taps or rows; a row with its token in the text around it.

A run need not be finished. Nothing is written.
"""

import json
from argparse import ArgumentParser, Namespace
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pod_job.checking.consent import Consent
from pod_job.commands.command_line import DONE, Command, add_inputs, add_json, add_run_dir, consent_of
from pod_job.commands.console import stdout_console
from pod_job.errors import JobError
from pod_job.report.overview import read_overview
from pod_job.report.run_facts import Facts, batch_facts, row_facts, run_facts, tap_facts
from pod_job.report.training_facts import training_facts
from pod_job.run_folder.identity import find_run
from pod_job.storage.open import open_folder
from pod_job.terminal import one_line

EXAMPLES = ("runs/first", "runs/first --tap layer_12", "gs://my-bucket/run --batch 3", "runs/first --row 1467 --json")


def add_arguments(parser: ArgumentParser) -> None:
    add_run_dir(parser)
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--batch", type=int, metavar="N", help="this batch, from 1")
    part.add_argument("--row", type=int, metavar="I", help="this row, from 0, in every tap")
    part.add_argument("--tap", metavar="NAME", help="this tap, such as layer_12")
    add_json(parser)
    add_inputs(parser)


def run_inspect(options: Namespace) -> int:
    consent = consent_of(options, "--row" if options.row is None else None)
    facts = facts_of_training(options) or facts_of_vectors(options, consent)
    if options.json:
        print(json.dumps(facts, indent=1))
    else:
        show(facts, stdout_console())
    return DONE


def facts_of_training(options: Namespace) -> Facts | None:
    """Returns the facts of a run of SAEs; None of a run of vectors. JobError where a part of vectors is asked for."""
    folder = open_folder(options.run_dir)
    run = find_run(folder)
    if run is None or run.identity.train is None:
        return None
    for name in ("batch", "row", "tap"):
        if (value := getattr(options, name)) is not None:
            raise JobError(f"--{name} {value}: {options.run_dir} holds SAEs and no vectors; leave it out")
    return training_facts(folder, run, run.identity.train)


def facts_of_vectors(options: Namespace, consent: Consent) -> Facts:
    """Returns the facts of a run of vectors, or of the part of it that is asked for."""
    overview = read_overview(options.run_dir)
    if options.batch is not None:
        return batch_facts(overview, options.batch)
    if options.row is not None:
        return row_facts(overview, options.row, consent)
    if options.tap is not None:
        return tap_facts(overview, options.tap)
    return run_facts(overview)


def show(facts: Facts, console: Console) -> None:
    """Prints single values as aligned lines, and lists as tables below them."""
    lines = {name: value for name, value in facts.items() if not isinstance(value, list)}
    width = max(map(len, lines)) + 2
    for name, value in lines.items():
        console.print(f"[bold]{name:<{width}}[/]{escape(shown(name, value))}", highlight=False, soft_wrap=True)
    for name, entries in facts.items():
        if isinstance(entries, list) and entries:
            table = Table(*entries[0], box=None, pad_edge=False)
            for entry in entries:
                table.add_row(*(escape(shown(key, value)) for key, value in entry.items()))
            console.print(f"\n[bold]{name}[/]")
            console.print(table, highlight=False)


def shown(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.2%}" if name == "outlier rows" else f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return repr(value) if name in ("before", "token", "after") else one_line(str(value))


COMMAND = Command("inspect", __doc__, EXAMPLES, add_arguments, run_inspect)
main = COMMAND.main
