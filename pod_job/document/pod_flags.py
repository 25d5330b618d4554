"""The pod that the distributed command runs on: from `--mesh_shape`, `--hosts` and the machine itself."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from pod_job import environment
from pod_job.config.schema import PodKind
from pod_job.errors import JobError
from pod_job.host.tpu_slice import TpuWorker, this_tpu_worker
from pod_job.preflight.tpu_facts import read_accelerator_type


@dataclass(frozen=True)
class Pod:
    """A mesh, and the hosts that its devices are on."""

    data: int
    model: int
    kind: PodKind
    hosts: int

    def overrides(self) -> list[str]:
        """Returns the overrides of the job."""
        return [
            f"mesh.data={self.data}",
            f"mesh.model={self.model}",
            f"pod.kind={self.kind.value}",
            f"pod.hosts={self.hosts}",
            f"pod.devices_per_host={self.data * self.model // self.hosts}",
        ]


def choose_pod(shape: Sequence[str], hosts: int | None) -> Pod:
    """Returns the pod; without `hosts`, a TPU VM's own slice, and elsewhere this machine with CPU devices.

    Raises:
        JobError: a mesh that is none, or not of the slice's or the hosts' devices.
    """
    data, model = mesh_shape(shape)
    worker = this_tpu_worker() if hosts is None else None
    if worker is None:
        hosts = 1 if hosts is None else hosts
        if hosts < 1 or data * model % hosts:
            raise JobError(f"--hosts {hosts} does not divide the {data * model} devices of --mesh_shape {data},{model}")
        os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(data * model // hosts))  # of no effect on other devices
        return Pod(data, model, PodKind.local, hosts)
    count = workers_of(worker, data * model)
    os.environ.setdefault(environment.HOST, str(worker.index))
    return Pod(data, model, PodKind.tpu, count)


def workers_of(worker: TpuWorker, devices: int) -> int:
    """Returns the number of workers of the slice. JobError where it has not as many chips as the mesh has devices."""
    try:
        sold = None if worker.accelerator_type is None else read_accelerator_type(worker.accelerator_type)
    except JobError:  # a name that is newer than the table here
        sold = None
    count = worker.count or (1 if sold is None else sold.hosts)
    if sold is not None and sold.chips != devices:
        raise JobError(
            f"--mesh_shape is {devices} devices, and this {worker.accelerator_type} has {sold.chips} chips; "
            f"give two numbers whose product is {sold.chips}, such as {sold.chips},1"
        )
    if devices % count:
        raise JobError(f"--mesh_shape is {devices} devices, which {count} workers of this slice cannot share evenly")
    return count


def mesh_shape(words: Sequence[str]) -> tuple[int, int]:
    """Returns (8, 8) for ["8,8"] and ["8", "8"]; JobError for anything but two whole numbers from 1."""
    text = ",".join(words)
    parts = [part.strip() for part in text.split(",") if part.strip() or len(words) == 1]
    if len(parts) != 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise JobError(f"--mesh_shape {' '.join(words)} is not two whole numbers, DATA,MODEL; give for example 8,8")
    return int(parts[0]), int(parts[1])
