"""Devices of a pod that is not there, for programs that are only compiled."""

from typing import Any

from jax.experimental.topologies import get_topology_desc

from pod_job.errors import JobError
from pod_job.preflight.tpu_facts import Slice


def pod_devices(pod: Slice) -> list[Any]:
    """Returns the devices of a pod, to compile for. Raises JobError where libtpu is missing or refuses the topology."""
    options: dict[str, Any] = {}
    if pod.chip.name == "v4":
        options["chip_config_name"] = "megacore"  # as on a TPU VM: the two cores of a chip are one device
    if pod.chips == 1:
        options["chips_per_host_bounds"] = [1, 1, 1]
    try:
        topology = get_topology_desc(platform="tpu", topology_name=pod.topology, **options)
    except (ModuleNotFoundError, RuntimeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        if "INVALID_ARGUMENT" in reason:
            raise JobError(f"pod.accelerator_type: the compiler refuses topology {pod.topology}: {reason}") from error
        raise JobError(f"no TPU compiler here ({reason}); pip install 'tpu-pod-activations[preflight]'") from error
    return list(topology.devices)
