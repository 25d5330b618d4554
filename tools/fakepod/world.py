"""Puts the simulated cloud together: keys, API server, hosts, and the environment in which gcloud finds them."""

import getpass
import itertools
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import ThreadingHTTPServer
from pathlib import Path

from pod_job import environment
from tools.fakepod.api import api_handler
from tools.fakepod.cloud import Cloud, Record
from tools.fakepod.hosts import Hosts

PROJECT = "simulated-project"
CHIPS_PER_VM, CORES_PER_VM = 4, 8
_subnets = itertools.count(1)


@dataclass(frozen=True)
class World:
    """A simulated cloud that runs: `env` for the processes that should use it, `ssh_port` of every host."""

    cloud: Cloud
    env: Mapping[str, str]
    ssh_port: int
    root: Path
    missing: dict[str, set[int]]
    """By node: workers of its next creations that never come."""

    def hosts(self, node_id: str) -> Hosts:
        """The machines of a node."""
        (found,) = (hosts for name, hosts in self.cloud.machines.items() if name.endswith(f"/nodes/{node_id}"))
        assert isinstance(found, Hosts)
        return found


def fakepod_available() -> str | None:
    """None when a pod can be simulated here, otherwise the reason why not, fit to be shown to the user."""
    if sys.platform != "linux":
        return f"addresses 127.0.0.2 and up, which {sys.platform} does not have by itself"
    path = f"{os.environ.get('PATH', '')}:/usr/sbin"
    needed = ("gcloud", "ssh", "scp", "ssh-keygen", "sshd", "curl")
    missing = [name for name in needed if not shutil.which(name, path=path)]
    return f"{', '.join(missing)} (Google Cloud SDK, openssh-client, openssh-server, curl)" if missing else None


@contextmanager
def fakepod(root: Path, host_env: Mapping[str, str], bucket: str | None = None) -> Iterator[World]:
    """Serves a simulated cloud for as long as the context is open; `root` (absolute) keeps homes and logs.

    Args:
        host_env: environment of every process on a host, beside what the simulation needs itself.
        bucket: address of a bucket server, for the workstation and the hosts.
    """
    home = root / "home"
    key = home / ".ssh" / "google_compute_engine"
    key.parent.mkdir(parents=True, mode=0o700)
    subprocess.run(["ssh-keygen", "-q", "-t", "rsa", "-b", "2048", "-N", "", "-f", str(key)], check=True)
    kind, public, *_ = key.with_suffix(".pub").read_text().split()
    user = getpass.getuser()
    ssh_port, jax_port = free_port(), free_port()
    emulator = {} if bucket is None else {environment.STORAGE_EMULATOR: bucket}
    cpu = {"JAX_PLATFORMS": "cpu", "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo"}
    common = {**emulator, **cpu, "PATH": os.environ["PATH"]}

    missing: dict[str, set[int]] = {}

    def new_machines(node: Record) -> Hosts:
        subnet = next(_subnets)
        addresses = [f"127.{os.getpid() % 200 + 1}.{subnet}.{worker + 1}" for worker in range(workers_of(node))]
        # jax's own port is fixed, and taken where two pods are simulated at once.
        coordinator = {
            "JAX_COORDINATOR_PORT": str(jax_port),
            "JAX_COORDINATOR_BIND_ADDRESS": f"{addresses[0]}:{jax_port}",
        }
        env = {**common, **coordinator, **host_env}
        hosts = Hosts(root / f"node_{node['id']}", addresses, ssh_port, key.with_suffix(".pub"), env)
        hosts.absent |= missing.get(node["name"].rpartition("/")[2], set())
        return hosts

    cloud = Cloud(PROJECT, new_machines)
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), api_handler(cloud, f"{user}:{kind} {public} {user}", root / "api.log")
    )
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        env = gcloud_env(root, home, server.server_port)
        if bucket is not None:
            env |= emulator | {"CLOUDSDK_API_ENDPOINT_OVERRIDES_STORAGE": f"{bucket}/storage/v1/"}
        yield World(cloud, env, ssh_port, root, missing)
    finally:
        server.shutdown()
        server.server_close()
        with cloud.lock:  # hosts that are just being started are all there before they are ended
            for machines in cloud.machines.values():
                machines.stop()


def gcloud_env(root: Path, home: Path, port: int) -> dict[str, str]:
    """The variables that send the real gcloud to the simulated cloud."""
    token = root / "token"
    token.write_text("simulated-token-of-a-workstation")
    base = f"http://127.0.0.1:{port}"
    return {
        "HOME": str(home),
        "CLOUDSDK_CONFIG": str(root / "gcloud"),
        "CLOUDSDK_CORE_PROJECT": PROJECT,
        "CLOUDSDK_CORE_CHECK_GCE_METADATA": "0",
        "CLOUDSDK_CORE_DISABLE_USAGE_REPORTING": "1",
        "CLOUDSDK_CORE_DISABLE_PROMPTS": "1",
        "CLOUDSDK_COMPONENT_MANAGER_DISABLE_UPDATE_CHECK": "1",
        "CLOUDSDK_AUTH_ACCESS_TOKEN_FILE": str(token),
        "CLOUDSDK_API_ENDPOINT_OVERRIDES_TPU": f"{base}/",
        "CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE": f"{base}/compute/v1/",
    }


def workers_of(node: Record) -> int:
    """The number of VMs: v5litepod and v6e count chips and have one VM up to 8, v4 and v5p count cores."""
    kind, _, size = node["acceleratorType"].rpartition("-")
    if kind in ("v4", "v5p"):
        return max(1, int(size) // CORES_PER_VM)
    return 1 if int(size) <= 8 else int(size) // CHIPS_PER_VM


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
