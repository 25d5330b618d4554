"""Kind of end that an exception means: errors as jax 0.10, libtpu and this program write them."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from pod_job.errors import JobError, NoWeights
from pod_job.host.host_end import HostEnd, PeerEnded, host_end_of
from pod_job.run_folder.status import EndKind, Phase

BACKEND = "Unable to initialize backend 'tpu': "
TEXTS = {
    EndKind.bad_machine: (
        f"{BACKEND}FAILED_PRECONDITION: TPU initialization failed: open(/dev/vfio/0): Device or resource busy: Device "
        "or resource busy; Couldn't open iommu group /dev/vfio/0 (set JAX_PLATFORMS='' to automatically choose ...)",
        "UNKNOWN: TPU initialization failed: open(/dev/accel3): Operation not permitted; Couldn't open device",
        f"{BACKEND}UNAVAILABLE: No ba16c7433 device found.",
        "NOT_FOUND: No ba16c7433 device found.",
        "INTERNAL: Failed to establish SliceBuilder grpc channel to 10.164.0.7:8471.",
        f"{BACKEND}ABORTED: The TPU is already in use by process with pid 4711. Not attempting to load libtpu.so",
        "Getting metadata['tpu-env'] failed for 6 tries",
        "Failed to get TPU metadata (tpu-env) from instance metadata for variable TPU_PROCESS_BOUNDS",
    ),
    EndKind.lost_peer: (
        "INTERNAL: Gloo all-reduce failed: Connection closed by peer [127.0.0.1]:2342",
        "DEADLINE_EXCEEDED: Barrier timed out. Id: PjRT_Client_Connect::0. This usually happens because a task died",
        "UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats): /job:jax_worker/task:1",
        "UNKNOWN: Coordination service agent has been shut down",
    ),
    EndKind.bug: (
        "no such tile",
        f"{BACKEND}INTERNAL: Failed to open libtpu.so: libtpu.so: cannot open shared object file",
        "RESOURCE_EXHAUSTED: Attempting to allocate 4.00G",
    ),
}


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in TEXTS.items() for text in texts])
def test_errors_of_jax_are_told_by_their_text(kind: EndKind, text: str) -> None:
    assert host_end_of(RuntimeError(text)) == HostEnd(kind, f"RuntimeError: {text}")


@pytest.mark.parametrize("text", [text for texts in TEXTS.values() for text in texts])
def test_a_job_error_is_the_users_whatever_it_says(text: str) -> None:
    assert host_end_of(JobError(text)) == HostEnd(EndKind.user_error, text)


def test_the_libtpu_that_is_installed_finds_no_chip_here(require: Callable[[bool, str], None]) -> None:
    """Its own words, should they change: this machine has none."""
    require(find_spec("libtpu") is not None and not Path("/dev/vfio").exists(), "libtpu, and a machine without a TPU")
    program = """
        import jax
        from pod_job.host.host_end import host_end_of
        try:
            jax.devices()
        except Exception as error:
            print(host_end_of(error).kind)
        """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(
        command, env=os.environ | {"JAX_PLATFORMS": "tpu"}, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.splitlines()[-1:] == ["bad_machine"], done.stderr


def test_errors_are_told_by_their_type() -> None:
    assert host_end_of(NoWeights("x: no weights")).kind is EndKind.user_error
    assert host_end_of(KeyError("vfio: Device or resource busy, heartbeat")).kind is EndKind.bug
    assert host_end_of(KeyboardInterrupt()) == HostEnd(EndKind.bug, "KeyboardInterrupt: ")
    assert host_end_of(ConnectionResetError(104, "reset")).kind is EndKind.lost_peer
    assert host_end_of(PeerEnded(3, "host 3 failed: x")) == HostEnd(EndKind.lost_peer, "host 3 failed: x", 3)


def test_who_leaves_because_another_was_asked_to_stop_has_stopped() -> None:
    end = host_end_of(PeerEnded(3, "host 3 was asked to stop: SIGTERM", asked=True))
    assert (end.kind, end.phase, end.blamed_host) == (EndKind.stopped, Phase.stopped, 3)
    assert HostEnd(EndKind.bug, "x").phase is Phase.failed
