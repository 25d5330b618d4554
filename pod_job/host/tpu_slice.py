"""The TPU slice that this machine is a worker of, as the machine itself knows it.

As jax does, from the variables that Google sets where it sets them, and else from the VM's metadata server.
"""

import os
import urllib.request
from dataclasses import dataclass
from glob import glob
from importlib.metadata import entry_points

from pod_job import environment
from pod_job.errors import JobError
from pod_job.host.chips import DEVICES

ADDRESSES = ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")
"""Variables that list the workers of a slice; the first that is set counts."""
ACCELERATOR_TYPE = "TPU_ACCELERATOR_TYPE"
SIGNS = (*ADDRESSES, environment.TPU_WORKER, ACCELERATOR_TYPE, environment.METADATA_SERVER)
"""Variables that only a TPU VM has."""
ASK_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class TpuWorker:
    """This machine's place in its slice: `count` workers, `accelerator_type` as Cloud TPU names it; None: not known."""

    index: int
    count: int | None
    accelerator_type: str | None


def this_tpu_worker() -> TpuWorker | None:
    """Returns this machine's place in a TPU slice; None where it is no TPU VM.

    Raises:
        JobError: a number that is none, or not in the slice.
    """
    if not is_tpu_vm():
        return None
    listed = listed_workers() or attribute("worker-network-endpoints")
    accelerator_type = variable(ACCELERATOR_TYPE) or attribute("accelerator-type")
    if listed is None and accelerator_type is None:
        return None
    index = variable(environment.TPU_WORKER) or attribute("agent-worker-number") or "0"
    count = len(listed.split(",")) if listed else None
    if not index.isdecimal() or (count is not None and int(index) >= count):
        raise JobError(f"{environment.TPU_WORKER}={index} is not a worker of this slice, which has {count}; unset it")
    return TpuWorker(int(index), count, accelerator_type)


def listed_workers() -> str | None:
    """Returns the workers of the slice as a variable lists them, with commas; None where none does."""
    return next(filter(None, map(variable, ADDRESSES)), None)


def variable(name: str) -> str | None:
    """Returns an environment variable; None where it is empty, or a sentence: libtpu leaves such on other machines."""
    value = os.environ.get(name, "").strip()
    return value if value and " " not in value else None


def is_tpu_vm() -> bool:
    """Returns whether there is any sign of a TPU on this machine."""
    return any(variable(name) for name in SIGNS) or any(glob(pattern) for pattern in DEVICES)


def use_cpu_without_accelerator() -> None:
    """Lets jax use the CPU where there is neither TPU nor jax plugin: libtpu, where it is installed, prints errors."""
    if not is_tpu_vm() and not entry_points(group="jax_plugins"):
        os.environ.setdefault("JAX_PLATFORMS", "cpu")


def devices_here() -> list[str]:
    """Returns the overrides of a job on all devices of this machine, each with rows of its own."""
    use_cpu_without_accelerator()
    import jax

    count = jax.local_device_count()
    return [f"mesh.data={count}", f"pod.devices_per_host={count}"]


def attribute(name: str) -> str | None:
    """Returns an attribute of this VM from its metadata server; None where there is none, or no server."""
    server = variable(environment.METADATA_SERVER)
    if server is None and os.environ.get("TPU_SKIP_MDS_QUERY"):
        return None
    server = server or "metadata.google.internal"
    url = f"http://{server}/computeMetadata/v1/instance/attributes/{name}"
    request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
            request, timeout=ASK_TIMEOUT_S
        ) as answer:
            return answer.read().decode().strip() or None
    except (OSError, UnicodeError):
        return None
