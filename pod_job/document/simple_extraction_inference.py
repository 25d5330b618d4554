"""Inference with extraction, on the devices of this machine: `simple_extraction_inference --model_path ...`."""

import sys
from collections.abc import Sequence
from pathlib import Path

from pod_job.document.flags import RUN, exit_status_in_flags, make_parser, run_here, shared_overrides


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status: 0 done, 2 for bad input."""
    options = make_parser("simple_extraction_inference", "Predict ARC answers and keep activations.").parse_args(argv)
    run_dir = str(Path(options.activations_dir) / RUN)
    return exit_status_in_flags(lambda: run_here(shared_overrides(options, run_dir), run_dir, options))


if __name__ == "__main__":
    sys.exit(main())
