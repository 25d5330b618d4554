"""`pod-job verify RUN_DIR`: reads every file of a run and reports what is wrong."""

import json
from argparse import Namespace

from pod_job.checking.recompute import recompute
from pod_job.checking.verify import Report, record, to_json, verify
from pod_job.commands.command_line import DONE, FAILED, RUN_DIR_HELP, exit_status, make_parser
from pod_job.progress import progress_bar


def text(report: Report) -> str:
    """The report for people."""
    state = "whole" if report.complete else f"unfinished, {len(report.missing)} batches missing"
    lines = [
        f"{report.url}: {state}",
        f"{report.batches} batches, {report.rows:,} rows, {report.files} files, {report.bytes:,} bytes read",
    ]
    if report.nonfinite_rows:
        lines.append(f"{report.nonfinite_rows} vectors have a NaN or an infinity")
    for tap, deviation in report.recomputed.items():
        lines.append(f"{tap}: {deviation}")
    lines += [f"problem: {problem}" for problem in report.problems]
    return "\n".join([*lines, "sound" if report.sound else "NOT SOUND"])


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    examples = ["runs/first", "gs://my-bucket/run --json", "gs://my-bucket/run --recompute 64 tasks.path=moved.json"]
    parser = make_parser("verify", __doc__ or "", examples)
    parser.add_argument("run_dir", metavar="RUN_DIR", help=RUN_DIR_HELP)
    parser.add_argument("--recompute", type=int, default=0, metavar="N", help="compute N random rows anew")
    parser.add_argument("--seed", type=int, default=0, help="chooses the rows")
    parser.add_argument("--json", action="store_true", help="the report as JSON on stdout")
    parser.add_argument("overrides", nargs="*", help="where inputs were moved: model.path=... tasks.path=...")
    options = parser.parse_intermixed_args(argv)
    return exit_status(lambda: verify_and_tell(options))


def verify_and_tell(options: Namespace) -> int:
    report = verify(options.run_dir, progress_bar)
    if options.recompute and report.sound:
        report.recomputed = recompute(options.run_dir, options.recompute, options.seed, options.overrides)
        far = {tap: deviation for tap, deviation in report.recomputed.items() if deviation.too_far}
        report.problems += [f"{report.url}: {tap}: {deviation}" for tap, deviation in far.items()]
    record(report)
    print(json.dumps(to_json(report), indent=1) if options.json else text(report))
    return DONE if report.sound else FAILED
