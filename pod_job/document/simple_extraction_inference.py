"""Inference with extraction, on the devices of this machine: `simple_extraction_inference --model_path ...`."""

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from pod_job.config.load import load
from pod_job.document.flags import RUN, exit_status_in_flags, make_parser, run_here, shared_overrides
from pod_job.host.tpu_slice import devices_here


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status: 0 done, 2 for bad input."""
    options = make_parser("simple_extraction_inference", "Predict ARC answers and keep activations.").parse_args(argv)
    run_dir = str(Path(options.activations_dir) / RUN)
    return exit_status_in_flags(lambda: run_simple(options, run_dir))


def run_simple(options: Namespace, run_dir: str) -> None:
    """Runs the job on this machine and exports it."""
    overrides = shared_overrides(options, run_dir)
    load(overrides)  # before jax looks for devices
    run_here([*overrides, *devices_here()], run_dir, options)


if __name__ == "__main__":
    sys.exit(main())
