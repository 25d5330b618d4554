"""What two runs differ in, key by key: what their activations depend on, how they were started, versions and size.

Exit status 1: their activations depend on different things. Otherwise they hold the same rows, up to rounding.
"""

import json
from argparse import Namespace
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pod_job.commands.command_line import DONE, FAILED, RUN_DIR_HELP, exit_status, make_parser, stdout_console
from pod_job.report.overview import Overview, read_overview
from pod_job.run_folder.identity import differences, shown


@dataclass(frozen=True)
class Difference:
    """Of `part`: `identity` (the activations depend on it), `config`, `version` or `content`; None: absent there."""

    part: str
    key: str
    a: Any
    b: Any


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = make_parser("diff", __doc__ or "", ["runs/first runs/second", "runs/first gs://my-bucket/run --json"])
    parser.add_argument("run_a", metavar="RUN_A", help=RUN_DIR_HELP)
    parser.add_argument("run_b", metavar="RUN_B", help="another one")
    parser.add_argument("--json", action="store_true", help="the differences as JSON on stdout")
    options = parser.parse_args(argv)
    return exit_status(lambda: diff(options))


def diff(options: Namespace) -> int:
    found = compare(read_overview(options.run_a), read_overview(options.run_b))
    if options.json:
        print(json.dumps([vars(each) for each in found], indent=1))
    else:
        show(found, stdout_console())
    return FAILED if any(each.part == "identity" for each in found) else DONE


def compare(a: Overview, b: Overview) -> list[Difference]:
    """All differences, those of the identity first."""
    parts = {
        "identity": (a.identity, b.identity),
        "config": (a.config, b.config),
        "version": (versions(a), versions(b)),
        "content": (content(a), content(b)),
    }
    return [Difference(part, *each) for part, pair in parts.items() for each in differences(*pair)]


def versions(overview: Overview) -> dict[str, Any]:
    return {"format": overview.run["format"], "pod_job_version": overview.run["pod_job_version"]}


def content(overview: Overview) -> dict[str, Any]:
    kept = ("complete", "rows", "total_samples", "total_batches", "widths")
    return {key: overview.metadata[key] for key in kept}


def show(found: list[Difference], console: Console) -> None:
    if not found:
        console.print("no difference")
        return
    table = Table("part", "key", "a", "b", box=None, pad_edge=False)
    for each in found:
        table.add_row(each.part, escape(each.key), escape(shown(each.a)), escape(shown(each.b)))
    console.print(table, highlight=False)
    if not any(each.part == "identity" for each in found):
        console.print("what the activations depend on is the same")
