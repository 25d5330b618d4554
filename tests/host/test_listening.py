"""The hosts of a local pod listen on the loopback interface alone: coordinator, heartbeats and collectives."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from jaxlib import _jax  # pyright: ignore[reportAttributeAccessIssue]

from launch.local import coordinator_address
from pod_job import environment
from pod_job.host import rendezvous

HOST = """
import os, sys
from pod_job.config.schema import PodConfig
from pod_job.host.rendezvous import start, this_host
start(this_host(PodConfig(hosts=2)))
from jax.experimental import multihost_utils
multihost_utils.sync_global_devices("all are here")
held = {os.readlink(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd") if int(number) > 2 and
        os.path.lexists(f"/proc/self/fd/{number}")}
for family in ("tcp", "tcp6"):
    for line in open(f"/proc/net/{family}").read().splitlines()[1:]:
        words = line.split()
        if words[3] == "0A" and f"socket:[{words[9]}]" in held:
            print("listens", words[1].split(":")[0])
multihost_utils.sync_global_devices("all have looked")
"""
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F"}
"""127.0.0.1 as /proc/net/tcp has it, and as an address of IPv6."""


@pytest.mark.pod
@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells who listens")
def test_hosts_of_a_local_pod_listen_on_the_loopback_interface() -> None:
    coordinator = coordinator_address(0)
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    hosts = [
        subprocess.Popen(
            [sys.executable, "-c", HOST],
            env=env | environment.local_host(host, 1, coordinator, "here"),
            stdout=subprocess.PIPE,
            text=True,
        )
        for host in range(2)
    ]
    listening = [
        line.split()[1]
        for host in hosts
        for line in host.communicate(timeout=100)[0].splitlines()
        if line.startswith("listens")
    ]
    assert [host.returncode for host in hosts] == [0, 0]
    assert len(listening) >= 3  # the coordinator and gloo of each host
    assert set(listening) <= LOOPBACK


def test_the_collectives_do_not_take_the_address_of_the_machines_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_jax, "make_gloo_tcp_collectives", lambda **_: None)
    rendezvous.stay_on_this_machine()
    rendezvous.stay_on_this_machine()
    made = _jax.make_gloo_tcp_collectives
    assert isinstance(made, partial)
    assert made.keywords == {"hostname": "127.0.0.1"}
