"""`python -m pod_job.preflight OVERRIDES [--json]`: what a job will take and cost on a TPU pod, before anyone pays."""

import argparse
import json
import os
import sys
from collections.abc import Sequence

from pod_job import environment
from pod_job.errors import JobError
from pod_job.preflight.lines import lines
from pod_job.preflight.report import preflight


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 it fits, 2 bad input or it does not fit."""
    parser = argparse.ArgumentParser(prog="python -m pod_job.preflight", description=__doc__)
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="key=value, as Hydra reads it")
    parser.add_argument("--json", action="store_true", help="the report as JSON on stdout")
    options = parser.parse_intermixed_args(argv)
    os.environ.update(environment.COMPILE_ONLY)
    try:
        report = preflight(options.overrides)
    except JobError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(report, indent=2) if options.json else "\n".join(lines(report)))
    return 0 if report["step"]["fits"] else 2


if __name__ == "__main__":
    sys.exit(main())
