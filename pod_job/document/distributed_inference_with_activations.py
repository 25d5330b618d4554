"""Inference with extraction on a mesh of devices: the same program is started on every worker of a pod.

On a TPU pod the workers find each other; elsewhere the variables of `pod_job.environment` give each its index.
"""

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from pod_job.document.flags import RUN, exit_status_in_flags, make_parser, run_here, shared_overrides
from pod_job.errors import JobError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status: 0 done, 2 for bad input."""
    parser = make_parser("distributed_inference_with_activations", "Predict and keep activations on a pod.")
    parser.add_argument("--mesh_shape", default="1,1", metavar="DATA,MODEL", help="devices by axis: 8,8 on a v5e-64")
    parser.add_argument("--sharding", choices=("replicated", "fsdp", "tensor"), default="replicated")
    parser.add_argument("--hosts", type=int, default=1, help="workers of the pod: 16 on a v5e-64")
    parser.add_argument(
        "--gcs_bucket", default=None, metavar="gs://BUCKET/PREFIX", help="where the run and the pickle files go"
    )
    parser.add_argument("--upload_to_cloud", type=boolean, default=None, metavar="True|False")
    options = parser.parse_args(argv)
    return exit_status_in_flags(lambda: run_distributed(options))


def run_distributed(options: Namespace) -> None:
    """Runs the job on the mesh and exports it. JobError for flags that do not fit together."""
    data, model = mesh_shape(options.mesh_shape)
    if data * model % options.hosts:
        raise JobError(f"--hosts {options.hosts} does not divide the {data * model} devices of --mesh_shape")
    upload = options.gcs_bucket is not None if options.upload_to_cloud is None else options.upload_to_cloud
    if upload and options.gcs_bucket is None:
        raise JobError("--upload_to_cloud True needs a bucket; give --gcs_bucket gs://bucket/prefix")
    run_dir = f"{options.gcs_bucket.rstrip('/')}/{RUN}" if upload else str(Path(options.activations_dir) / RUN)
    overrides = [
        *shared_overrides(options, run_dir),
        f"mesh.data={data}",
        f"mesh.model={model}",
        f"sharding={options.sharding}",
        f"pod.hosts={options.hosts}",
        f"pod.devices_per_host={data * model // options.hosts}",
    ]
    run_here(overrides, run_dir, options, also_in=options.gcs_bucket if upload else None)


def mesh_shape(text: str) -> tuple[int, int]:
    """Returns (8, 8) for "8,8"; JobError for anything but two whole numbers from 1."""
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise JobError(f"--mesh_shape {text} is not two whole numbers, DATA,MODEL; give for example 8,8")
    return int(parts[0]), int(parts[1])


def boolean(text: str) -> bool:
    """Returns the value of True or False in any capitalization; ValueError otherwise, which argparse reports."""
    return bool(("false", "true").index(text.lower()))


if __name__ == "__main__":
    sys.exit(main())
