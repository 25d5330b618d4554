"""Shows what two runs differ in, key by key: what their activations depend on, how they were started, version and size.

Runs whose activations depend on the same things hold the same rows, up to rounding.
"""

import json
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from typing import Any

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pod_job.commands.command_line import DONE, FAILED, RUN_DIR_HELP, Command, add_json
from pod_job.commands.console import stdout_console
from pod_job.report.overview import Overview, read_overview
from pod_job.run_folder.differences import differences, shown
from pod_job.terminal import one_line

EXAMPLES = ("runs/first runs/second", "runs/first gs://my-bucket/run --json")
CONTENT = ("complete", "rows", "total_samples", "total_batches", "widths")


@dataclass(frozen=True)
class Difference:
    """A key with different values in runs `a` and `b`; None: absent there.

    `part` is `identity` (the activations depend on it), `config`, `version` or `content`.
    """

    part: str
    key: str
    a: Any
    b: Any


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run_a", metavar="RUN_A", help=RUN_DIR_HELP)
    parser.add_argument("run_b", metavar="RUN_B", help="another one")
    add_json(parser, "the differences")


def run_diff(options: Namespace) -> int:
    differing = compare(read_overview(options.run_a), read_overview(options.run_b))
    if options.json:
        print(json.dumps([vars(difference) for difference in differing], indent=1))
    else:
        print_differences(differing, stdout_console())
    return FAILED if any(difference.part == "identity" for difference in differing) else DONE


def compare(a: Overview, b: Overview) -> list[Difference]:
    """Returns all differences, those of the identity first."""
    parts = {
        "identity": (msgspec.to_builtins(a.identity), msgspec.to_builtins(b.identity)),
        "config": (a.config, b.config),
        "version": (versions(a), versions(b)),
        "content": (content(a), content(b)),
    }
    return [Difference(part, *difference) for part, pair in parts.items() for difference in differences(*pair)]


def versions(overview: Overview) -> dict[str, Any]:
    return {"format": overview.run.format, "pod_job_version": overview.run.pod_job_version}


def content(overview: Overview) -> dict[str, Any]:
    return {key: getattr(overview.metadata, key) for key in CONTENT}


def print_differences(differing: list[Difference], console: Console) -> None:
    if not differing:
        console.print("no difference")
        return
    table = Table("part", "key", "a", "b", box=None, pad_edge=False)
    for difference in differing:
        cells = (difference.part, difference.key, shown(difference.a), shown(difference.b))
        table.add_row(*(escape(one_line(cell)) for cell in cells))
    console.print(table, highlight=False)
    if not any(difference.part == "identity" for difference in differing):
        console.print("the activations depend on the same things")


COMMAND = Command("diff", __doc__, EXAMPLES, add_arguments, run_diff, "the activations depend on different things")
main = COMMAND.main
