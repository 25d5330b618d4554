"""SkyPilot: one managed job on one TPU slice, for `sky jobs launch`.

SkyPilot sets up every VM of the slice and runs the same command on each. It recovers a spot slice that was taken away;
a lost host or a bad machine ends with RESTART_STATUS, after which it starts the job again.
https://docs.skypilot.co/en/latest/reference/yaml-spec.html
"""

import shlex

from launch.cloud.bundle import HOST_PYTHON
from launch.cloud.request import pod_name
from launch.manifests.job_facts import RESTART_STATUS, JobFacts, Values
from pod_job.config.cloud import Capacity
from pod_job.errors import JobError
from pod_job.preflight.tpu_facts import TPU7X

ENVIRONMENT = "~/pod-job-environment"
ABORTED, KILLED = 134, 137
"""Exit codes of hosts that jax aborts for want of an answer, and of those that are killed."""
SETUP = f"""\
command -v uv || python3 -m pip install --user uv
export PATH="$HOME/.local/bin:$PATH"
uv venv --allow-existing --python {HOST_PYTHON} {ENVIRONMENT}
uv pip install --python {ENVIRONMENT}/bin/python -c constraints.txt -r pyproject.toml --extra tpu
"""


def skypilot(job: JobFacts) -> Values:
    """Returns the task, to be launched from a checkout of this program.

    Raises:
        JobError: SkyPilot does not offer the chip, or the kind of capacity.
    """
    config, cloud = job.config, job.config.cloud
    if job.sold.chip is TPU7X:
        raise JobError(f"pod.accelerator_type={config.pod.accelerator_type}: not for SkyPilot; use --for jobset")
    if cloud.capacity not in (Capacity.spot, Capacity.on_demand):
        raise JobError(f"cloud.capacity={cloud.capacity.value} is not for SkyPilot; use spot or on_demand")
    places = [{"infra": f"gcp/{zone.rpartition('-')[0]}/{zone}"} for zone in cloud.zones] or [{"infra": "gcp"}]
    command = shlex.join(["-m", "pod_job", *job.overrides])
    limit = "" if job.seconds is None else f"timeout {job.seconds} "
    return {
        "name": pod_name(config),
        "workdir": ".",
        "num_nodes": 1,  # a slice is one node, however many VMs it has
        "resources": {
            "accelerators": {f"tpu-{config.pod.accelerator_type}": 1},
            "accelerator_args": {"runtime_version": config.pod.runtime_version, "tpu_vm": True},
            "use_spot": cloud.capacity is Capacity.spot,
            **(places[0] if len(places) == 1 else {"any_of": places}),
            "job_recovery": {
                "max_restarts_on_errors": 0,
                "recover_on_exit_codes": [RESTART_STATUS, ABORTED, KILLED],
            },
        },
        "envs": job.environment,
        **({"secrets": dict.fromkeys(cloud.secrets)} if cloud.secrets else {}),
        "setup": SETUP,
        "run": f"{limit}{ENVIRONMENT}/bin/python {command}\n",
    }
