"""Rendezvous: this host's place in the pod, the wait for the other hosts, and the start of jax's cluster.

jax aborts every present host when one never comes, and does not say which. So hosts first report in the run folder,
and a host that is missing or has failed is named before jax is started.
"""

import os
import re
import socket
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
from jaxlib import _jax as jaxlib_module  # pyright: ignore[reportAttributeAccessIssue]  # a compiled module

from pod_job import environment
from pod_job.config.schema import PodConfig, PodKind
from pod_job.errors import JobError
from pod_job.host.host_end import PeerEnded
from pod_job.host.tpu_slice import is_tpu_vm, listed_workers, this_tpu_worker
from pod_job.run_folder.status import Phase, read_status
from pod_job.storage.folder import Folder

# A dead peer ends the others after this long.
HEARTBEAT_TIMEOUT_S = 30
LOOPBACK = "127.0.0.1"
# How long hosts that are done wait for those that still upload.
SHUTDOWN_TIMEOUT_S = 3600


@dataclass(frozen=True)
class Host:
    """Place of this process in the pod. `attempt` is the same on every host of one start.

    `coordinator`: host 0's address:port, where this process was told it; `port`: that on a TPU VM, 0 for the usual one.
    `local`: all hosts are processes on this machine. `slice`: name of this pod where several compute the run.
    """

    index: int
    count: int
    attempt: str
    coordinator: str | None
    port: int = 0
    local: bool = False
    slice: str | None = None


INDEXES = (environment.HOST, environment.TPU_WORKER, environment.KUBERNETES_INDEX, environment.SKYPILOT_RANK)
"""Variables with this host's index: of the launcher, of Google, of Kubernetes and of SkyPilot; the first that is set
counts. The order of TPU VMs is the slice's own, which need not be that of an engine's ranks."""


def this_host(pod: PodConfig) -> Host:
    """Returns this host's place, from the variables that the launcher, an engine, or Google on TPU VMs sets.

    Raises:
        JobError: a variable is missing or out of range.
    """
    if pod.slices > 1 and pod.slice is None:
        raise JobError(
            f"pod.slices={pod.slices}: this host does not know which slice it is of; start it by `pod-job run`, or "
            "give the hosts of each slice a pod.slice=NAME of its own"
        )
    check_listed(pod)
    name, text = host_index(pod)
    if not text.isdecimal() or int(text) >= pod.hosts:
        raise JobError(f"{name}={text} is not a host of this pod; use 0..{pod.hosts - 1} (pod.hosts={pod.hosts})")
    return Host(
        index=int(text),
        count=pod.hosts,
        attempt=this_attempt(),
        coordinator=os.environ.get(environment.COORDINATOR) or engine_coordinator(pod),
        port=pod.port,
        local=environment.COORDINATOR in os.environ,
        slice=pod.slice,
    )


def host_index(pod: PodConfig) -> tuple[str, str]:
    """Returns the index of this host as text, and the variable that has it. JobError where one of several has none."""
    worker = this_tpu_worker() if pod.kind is PodKind.tpu and environment.HOST not in os.environ else None
    if worker is not None and worker.count == pod.hosts:
        return environment.TPU_WORKER, str(worker.index)
    name = next((name for name in INDEXES if os.environ.get(name)), None)
    if name is not None:
        return name, os.environ[name]
    if pod.hosts > 1:
        raise JobError(
            f"none of {', '.join(INDEXES)} is set, so this host of pod.hosts={pod.hosts} does not know which it is; "
            f"start it by `pod-job run`, or set {environment.HOST}"
        )
    return environment.HOST, "0"


def check_listed(pod: PodConfig) -> None:
    """Raises JobError where pod.hosts_file lists this VM otherwise than its TPU slice has it."""
    if environment.HOSTS not in os.environ or pod.kind is not PodKind.tpu:
        return
    worker, index = this_tpu_worker(), os.environ.get(environment.HOST)
    if worker is None or worker.count is None:
        return
    if worker.count != pod.hosts:
        raise JobError(
            f"pod.hosts={pod.hosts}, but this VM's TPU slice has {worker.count}; list the hosts of each slice as "
            f"a group of its own in pod.hosts_file, with pod.hosts={worker.count} and a mesh to match"
        )
    if str(worker.index) != index:
        raise JobError(
            f"pod.hosts_file lists this VM as host {index} of its group (counted from 0), but it is worker "
            f"{worker.index} of its TPU slice; list a slice's hosts in the order of their workers"
        )


def this_attempt() -> str:
    """Returns the token of this start, which all hosts have: the launcher's, or one made from what SkyPilot sets."""
    if attempt := os.environ.get(environment.ATTEMPT):
        return attempt
    task = os.environ.get(environment.SKYPILOT_TASK)
    if task is None:
        return "by-hand"
    # A task that was recovered keeps its name, on other machines.
    machines = zlib.crc32(os.environ.get(environment.SKYPILOT_ADDRESSES, "").encode())
    return f"{re.sub(r'[^A-Za-z0-9-]', '-', task)}-{machines:08x}"


def engine_coordinator(pod: PodConfig) -> str | None:
    """Returns host 0's address:port as an engine gives it; None where it is to be asked of a TPU VM's metadata server.

    The workers of a slice, which GKE lists, come before an engine's hosts: its order may be another.
    """
    if pod.hosts == 1:
        return None
    if address := os.environ.get(environment.JAX_COORDINATOR):
        return address
    workers = listed_workers() if pod.kind is PodKind.tpu else None
    if workers is None and pod.kind is PodKind.tpu and is_tpu_vm():
        return None
    own_hosts = None if workers else os.environ.get(environment.HOSTS)
    listed = workers or own_hosts or os.environ.get(environment.SKYPILOT_ADDRESSES, "").replace("\n", ",")
    names = [host_name(address) for address in listed.split(",")]
    if own_hosts:
        check_names(names)
    port = os.environ.get(environment.JAX_PORT) or pod.port or environment.COORDINATOR_PORT
    return f"{names[0]}:{port}" if names[0] else None


def host_name(address: str) -> str:
    """Returns the host of an address, which may have a port, such as libtpu's own; an IPv6 address in brackets."""
    address = address.strip()
    if address.startswith("["):
        return address.partition("]")[0] + "]"
    return f"[{address}]" if address.count(":") > 1 else address.partition(":")[0]


def check_names(names: Sequence[str]) -> None:
    """Raises JobError for names of pod.hosts_file by which the hosts of a slice cannot meet."""
    own = "list each host by an address that the other hosts know, or give it as HostName in ~/.ssh/config"
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise JobError(f"pod.hosts_file: {twice} is the address of {names.count(twice)} hosts of this slice; {own}")
    try:
        socket.getaddrinfo(names[0].strip("[]"), None)
    except OSError as error:
        raise JobError(
            f"pod.hosts_file: {names[0]}, the first host of this slice, is not known here ({error}); {own}"
        ) from error


def await_hosts(folder: Folder, host: Host, timeout_s: int) -> None:
    """Returns once every host has arrived in this attempt.

    Raises:
        PeerEnded: after `timeout_s` naming the hosts that never came, or at once naming one that failed and why.
    """
    deadline = time.monotonic() + timeout_s
    missing = set(range(host.count)) - {host.index}
    while missing:
        for other in sorted(missing):
            status = read_status(folder, other, host.attempt)
            if status is not None and status.phase is Phase.failed:
                raise PeerEnded(other, f"host {other} failed before the start: {status.error}")
            if status is not None and status.phase is Phase.stopped:
                raise PeerEnded(other, f"host {other} was asked to stop before the start: {status.error}", asked=True)
            if status is not None and status.phase.has_arrived:
                missing.remove(other)
        if missing and time.monotonic() > deadline:
            names = ", ".join(map(str, sorted(missing)))
            raise PeerEnded(
                min(missing),
                f"host {names} of {host.count} did not arrive within pod.arrival_timeout_s={timeout_s}; "
                f"see logs/ of that host, or raise the limit",
            )
        if missing:
            time.sleep(0.2)


def start(host: Host) -> None:
    """Joins jax's cluster. On a TPU VM jax finds coordinator and peers by itself.

    Raises:
        JobError: the coordinator's port is taken on this machine.
    """
    if host.coordinator is None:
        if host.count > 1:
            os.environ.setdefault(environment.JAX_PORT, str(host.port or environment.COORDINATOR_PORT))
            # Named, so that nothing else jax might detect on the machine (Slurm, Open MPI) is taken for the pod.
            jax.distributed.initialize(
                cluster_detection_method="gcetpu",
                heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_S,
                shutdown_timeout_seconds=SHUTDOWN_TIMEOUT_S,
            )
        return
    if host.index == 0 and host.local:
        check_port_free(host.coordinator)
    if host.local:
        stay_on_this_machine()
    jax.distributed.initialize(
        coordinator_address=host.coordinator,
        coordinator_bind_address=host.coordinator if host.local else None,
        num_processes=host.count,
        process_id=host.index,
        heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_S,
        shutdown_timeout_seconds=SHUTDOWN_TIMEOUT_S,
    )


def stay_on_this_machine() -> None:
    """Makes the collectives of a local pod listen on the loopback interface.

    jax has no setting for it: gloo takes the address of this machine's name, which others may reach.
    """
    if isinstance(jaxlib_module.make_gloo_tcp_collectives, partial):
        return
    jaxlib_module.make_gloo_tcp_collectives = partial(jaxlib_module.make_gloo_tcp_collectives, hostname=LOOPBACK)


def check_port_free(address: str) -> None:
    name, _, port = address.rpartition(":")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((name, int(port)))
        except OSError as error:
            raise JobError(
                f"pod.port={port} is taken on {name} ({error.strerror}); use another, or 0 for a free one"
            ) from error
