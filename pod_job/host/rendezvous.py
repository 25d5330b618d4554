"""Rendezvous: this host's place in the pod, the wait for the other hosts, and the start of jax's cluster.

jax aborts every present host when one never comes, and does not say which. So hosts first report in the run folder,
and a host that is missing or has failed is named before jax is started.
"""

import os
import socket
import time
from dataclasses import dataclass
from functools import partial

import jax
from jaxlib import _jax as jaxlib_module  # pyright: ignore[reportAttributeAccessIssue]  # a compiled module

from pod_job import environment
from pod_job.config.schema import PodConfig
from pod_job.errors import JobError
from pod_job.host.host_end import PeerEnded
from pod_job.host.tpu_slice import listed_workers
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
    """

    index: int
    count: int
    attempt: str
    coordinator: str | None
    port: int = 0


def this_host(pod: PodConfig) -> Host:
    """Returns this host's place, from the variables that the launcher sets, or on a TPU VM from its own.

    Raises:
        JobError: a variable is missing or out of range.
    """
    text = os.environ.get(environment.HOST, os.environ.get(environment.TPU_WORKER, "0"))
    if not text.isdigit() or int(text) >= pod.hosts:
        raise JobError(
            f"{environment.HOST}={text} is not a host of this pod; use 0..{pod.hosts - 1} (pod.hosts={pod.hosts})"
        )
    return Host(
        index=int(text),
        count=pod.hosts,
        attempt=os.environ.get(environment.ATTEMPT, "by-hand"),
        coordinator=os.environ.get(environment.COORDINATOR),
        port=pod.port,
    )


def await_hosts(folder: Folder, host: Host, timeout_s: float) -> None:
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
            if status is not None and status.phase is not Phase.checking:
                missing.remove(other)
        if missing and time.monotonic() > deadline:
            names = ", ".join(map(str, sorted(missing)))
            raise PeerEnded(
                min(missing),
                f"host {names} of {host.count} did not arrive within pod.arrival_timeout_s={timeout_s:g}; "
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
            os.environ.setdefault("JAX_COORDINATOR_PORT", str(host.port or environment.COORDINATOR_PORT))
            # Named, so that nothing else jax might detect on the machine (Slurm, Open MPI) is taken for the pod.
            jax.distributed.initialize(
                cluster_detection_method="gketpu" if listed_workers() else "gcetpu",
                heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_S,
                shutdown_timeout_seconds=SHUTDOWN_TIMEOUT_S,
            )
        return
    if host.index == 0:
        check_port_free(host.coordinator)
    stay_on_this_machine()
    jax.distributed.initialize(
        coordinator_address=host.coordinator,
        coordinator_bind_address=host.coordinator,
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
