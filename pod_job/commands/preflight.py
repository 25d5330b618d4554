"""What a job will take and cost on a TPU pod, before anyone pays. Exit status 2 also where its step does not fit."""

import os
from argparse import Namespace
from collections.abc import Sequence

import msgspec

from pod_job import environment
from pod_job.commands.command_line import BAD_INPUT, DONE, RUN_DIR_HELP, exit_status, make_parser
from pod_job.formats.records import encode
from pod_job.preflight.lines import lines
from pod_job.preflight.report import preflight

EXAMPLES = [
    "experiment=v5e64 storage.run_dir=gs://my-bucket/run --json",
    "experiment=v5e64 storage.run_dir=gs://my-bucket/run --measured gs://my-bucket/run",
]


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 it fits, 2 bad input or it does not fit."""
    parser = make_parser("preflight", __doc__ or "", EXAMPLES)
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="key=value, as Hydra reads it")
    parser.add_argument("--measured", metavar="RUN_DIR", help=f"compare with the times of this run: {RUN_DIR_HELP}")
    parser.add_argument("--json", action="store_true", help="the report as JSON on stdout")
    options = parser.parse_intermixed_args(argv)
    return exit_status(lambda: preflight_and_tell(options))


def preflight_and_tell(options: Namespace) -> int:
    os.environ.update(environment.COMPILE_ONLY)
    report = preflight(options.overrides, options.measured)
    print(msgspec.json.format(encode(report), indent=2).decode() if options.json else "\n".join(lines(report)))
    return DONE if report.fits else BAD_INPUT
