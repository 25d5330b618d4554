"""Reads every file of a run and reports what is wrong.

With --recompute it also computes random rows again and compares them with those that are stored.
"""

from argparse import ArgumentParser, Namespace

from pod_job.checking.verify import Report, store, verify
from pod_job.commands.command_line import (
    DONE,
    FAILED,
    Command,
    add_inputs,
    add_json,
    add_run_dir,
    consent_of,
)
from pod_job.errors import at_least
from pod_job.formats.records import encode
from pod_job.progress import progress_bar
from pod_job.terminal import one_line

EXAMPLES = (
    "runs/first",
    "gs://my-bucket/run --json",
    "runs/first --recompute 64 --follow-recorded",
    "gs://their-bucket/run --recompute 64 model.path=Qwen/Qwen2.5-7B tasks.path=arc.json",
)


def add_arguments(parser: ArgumentParser) -> None:
    add_run_dir(parser)
    parser.add_argument("--recompute", type=int, default=0, metavar="N", help="compute N random rows again (0)")
    parser.add_argument("--seed", type=int, default=0, help="chooses the rows (0)")
    add_json(parser, "the report")
    add_inputs(parser)


def run_verify(options: Namespace) -> int:
    at_least("--recompute", options.recompute, 0)
    at_least("--seed", options.seed, 0)
    consent = consent_of(options, None if options.recompute else "--recompute")
    report = verify(options.run_dir, progress_bar)
    if options.recompute and report.sound:
        from pod_job.checking.recompute import recompute  # jax, which only this needs

        report.recomputed = recompute(options.run_dir, options.recompute, options.seed, consent)
        far = {tap: deviation for tap, deviation in report.recomputed.items() if deviation.too_far}
        report.problems += [f"{report.url}: {tap}: {deviation}" for tap, deviation in far.items()]
        report.conclude()
    store(report)
    print(encode(report, indent=1).decode() if options.json else report_text(report))
    return DONE if report.sound else FAILED


def report_text(report: Report) -> str:
    """Returns the report as lines for people."""
    state = "whole" if report.complete else f"unfinished, {len(report.missing)} batches missing"
    lines = [
        f"{report.url}: {state}",
        f"{report.batches} batches, {report.rows:,} rows, {report.files} files, {report.bytes:,} bytes read",
    ]
    if report.nonfinite_rows:
        lines.append(f"{report.nonfinite_rows} vectors have a NaN or an infinity")
    for tap, deviation in report.recomputed.items():
        lines.append(one_line(f"{tap}: {deviation}"))
    lines += [f"problem: {one_line(problem)}" for problem in report.problems]
    return "\n".join([*lines, "sound" if report.sound else "NOT SOUND"])


COMMAND = Command("verify", __doc__, EXAMPLES, add_arguments, run_verify, "the run is not sound")
main = COMMAND.main
