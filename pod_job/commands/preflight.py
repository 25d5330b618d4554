"""Computes memory, time and cost of a job on a TPU pod, before anyone pays. No TPU is needed, but its compiler is.

The exit status is also 2 where the job does not fit into the memory of its chips.
"""

import os
from argparse import ArgumentParser, Namespace

import msgspec

from pod_job import environment
from pod_job.commands.command_line import BAD_INPUT, DONE, RUN_DIR_HELP, Command, add_json, add_overrides
from pod_job.formats.records import encode

EXAMPLES = (
    "experiment=qwen05b-text-v5e64 storage.run_dir=gs://my-bucket/run --json",
    "experiment=qwen05b-text-v5e64 storage.run_dir=gs://my-bucket/run --measured gs://my-bucket/run",
)


def add_arguments(parser: ArgumentParser) -> None:
    add_overrides(parser)
    parser.add_argument("--measured", metavar="RUN_DIR", help=f"compare with the times of this run: {RUN_DIR_HELP}")
    add_json(parser, "the report")


def run_preflight(options: Namespace) -> int:
    from pod_job.preflight.lines import lines
    from pod_job.preflight.report import preflight  # jax, which --help does not need

    os.environ.update(environment.COMPILE_ONLY)
    report = preflight(options.overrides, options.measured)
    print(msgspec.json.format(encode(report), indent=2).decode() if options.json else "\n".join(lines(report)))
    return DONE if report.fits else BAD_INPUT


COMMAND = Command("preflight", __doc__, EXAMPLES, add_arguments, run_preflight)
main = COMMAND.main
