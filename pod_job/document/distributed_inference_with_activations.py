"""Inference with extraction on a mesh of devices: the same program is started on every worker of a pod.

On a TPU pod the workers know the pod and find each other; elsewhere `--hosts` and the variables of
`pod_job.environment` say which worker this is.
"""

import re
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from pod_job.document.activation_extractor import ActivationExtractionConfig, ActivationExtractor
from pod_job.document.flags import RUN, exit_status_in_flags, make_parser, run_here, shared_overrides
from pod_job.document.pod_flags import choose_pod
from pod_job.errors import JobError

__all__ = ["ActivationExtractionConfig", "ActivationExtractor", "main"]

BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9](/.*)?")
TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status: 0 done, 2 for bad input."""
    parser = make_parser("distributed_inference_with_activations", "Predict and keep activations on a pod.")
    parser.add_argument(
        "--mesh_shape", nargs="+", default=["1,1"], metavar="DATA,MODEL", help="devices by axis: 8,8 on a v5e-64"
    )
    parser.add_argument("--sharding", choices=("replicated", "fsdp", "tensor"), default="replicated")
    parser.add_argument("--hosts", type=int, default=None, help="workers of the pod; a TPU pod knows its own")
    parser.add_argument(
        "--gcs_bucket", default=None, metavar="gs://BUCKET/PREFIX", help="where the run and the pickle files go"
    )
    parser.add_argument("--upload_to_cloud", type=boolean, nargs="?", const=True, default=None, metavar="True|False")
    options = parser.parse_args(argv)
    bucket = {"storage.run_dir": "--gcs_bucket"} if options.gcs_bucket and options.upload_to_cloud is not False else {}
    return exit_status_in_flags(lambda: run_distributed(options), bucket)


def run_distributed(options: Namespace) -> None:
    """Runs the job on the mesh and exports it. JobError for flags that do not fit together."""
    pod = choose_pod(options.mesh_shape, options.hosts)
    bucket = None if options.gcs_bucket is None else bucket_url(options.gcs_bucket)
    if options.upload_to_cloud and bucket is None:
        raise JobError("--upload_to_cloud needs a bucket; give --gcs_bucket gs://bucket/prefix")
    bucket = None if options.upload_to_cloud is False else bucket
    run_dir = str(Path(options.activations_dir) / RUN) if bucket is None else f"{bucket}/{RUN}"
    if pod.hosts > 1 and bucket is None:
        print(f"note: all {pod.hosts} workers must see {run_dir}; or give --gcs_bucket", file=sys.stderr)
    overrides = [*shared_overrides(options, run_dir), *pod.overrides(), f"sharding={options.sharding}"]
    run_here(overrides, run_dir, options, also_in=bucket)


def bucket_url(text: str) -> str:
    """Returns gs://bucket/prefix for that and for bucket/prefix; JobError for what names no bucket."""
    name = text.strip().removeprefix("gs://").rstrip("/")
    if not BUCKET.fullmatch(name):
        raise JobError(f"--gcs_bucket {text} names no bucket of Cloud Storage; give gs://bucket/prefix")
    return f"gs://{name}"


def boolean(text: str) -> bool:
    """Returns the value of True or False in any capitalization, yes, no, 1 or 0; ValueError otherwise."""
    try:
        return TRUTH[text.lower()]
    except KeyError:
        raise ValueError from None  # argparse says which word it was


if __name__ == "__main__":
    sys.exit(main())
