"""Assembles the simulated cloud: ssh keys, API server, hosts, and the environment that directs gcloud to them."""

import getpass
import itertools
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
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
    """Running simulated cloud.

    Attributes:
        env: variables of the processes that use it.
        ssh_port: of every host.
        ssh_delay_s: node -> worker -> seconds after READY until its sshd answers, in its next creations; inf: never.
    """

    cloud: Cloud
    env: Mapping[str, str]
    ssh_port: int
    root: Path
    ssh_delay_s: dict[str, dict[int, float]]

    def hosts(self, node_id: str) -> Hosts:
        """Returns the hosts of a node."""
        (hosts,) = (hosts for name, hosts in self.cloud.machines.items() if name.endswith(f"/nodes/{node_id}"))
        assert isinstance(hosts, Hosts)
        return hosts


def fakepod_available() -> str | None:
    """Returns None where a pod can be simulated, otherwise what this machine lacks, for the user."""
    if sys.platform != "linux":
        return f"addresses 127.0.0.2 and up, which {sys.platform} does not have by itself"
    path = f"{os.environ.get('PATH', '')}:/usr/sbin"
    needed = ("gcloud", "ssh", "scp", "ssh-keygen", "sshd", "curl")
    missing = [name for name in needed if not shutil.which(name, path=path)]
    return f"{', '.join(missing)} (Google Cloud SDK, openssh-client, openssh-server, curl)" if missing else None


@contextmanager
def fakepod(root: Path, host_env: Mapping[str, str], bucket: str | None = None) -> Iterator[World]:
    """Serves a simulated cloud while the context is open; `root` (absolute) holds homes and logs.

    Args:
        host_env: variables of every process on a host, in addition to those that the simulation sets.
        bucket: address of a bucket server, for the workstation and the hosts.
    """
    emulator = {} if bucket is None else {environment.STORAGE_EMULATOR: bucket}
    home, ssh_delay_s, ssh_port = root / "home", dict[str, dict[int, float]](), free_port()
    public_key = make_key(home / ".ssh" / "google_compute_engine")
    cloud = Cloud(PROJECT, new_hosts(root, public_key, ssh_port, {**emulator, **host_env}, ssh_delay_s))
    kind, key, *_ = public_key.read_text().split()
    user = getpass.getuser()
    handler = api_handler(cloud, f"{user}:{kind} {key} {user}", root / "api.log")
    try:
        with served(handler) as port:
            env = gcloud_env(root, home, port)
            if bucket is not None:
                env |= emulator | {"CLOUDSDK_API_ENDPOINT_OVERRIDES_STORAGE": f"{bucket}/storage/v1/"}
            yield World(cloud, env, ssh_port, root, ssh_delay_s)
    finally:
        with cloud.lock:  # hosts that are starting now are complete before they are stopped
            for machines in cloud.machines.values():
                machines.stop()


def make_key(path: Path) -> Path:
    """Makes an ssh key pair where gcloud looks for it, and returns the public key's file."""
    path.parent.mkdir(parents=True, mode=0o700)
    subprocess.run(["ssh-keygen", "-q", "-t", "rsa", "-b", "2048", "-N", "", "-f", str(path)], check=True)
    return path.with_suffix(".pub")


def new_hosts(
    root: Path, public_key: Path, ssh_port: int, env: Mapping[str, str], ssh_delay_s: Mapping[str, Mapping[int, float]]
) -> Callable[[Record], Hosts]:
    """Returns a function that makes the hosts of a node; hosts run jax on CPU devices."""
    cpu = {"JAX_PLATFORMS": "cpu", "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo", "PATH": os.environ["PATH"]}

    def make_hosts(node: Record) -> Hosts:
        subnet = next(_subnets)
        addresses = [f"127.{os.getpid() % 200 + 1}.{subnet}.{worker + 1}" for worker in range(workers_of(node))]
        # On its own address alone, as several pods are simulated on one machine; a VM takes any.
        coordinator = {"JAX_COORDINATOR_BIND_ADDRESS": f"{addresses[0]}:{environment.COORDINATOR_PORT}"}
        hosts = Hosts(root / f"node_{node['id']}", addresses, ssh_port, public_key, {**cpu, **coordinator, **env})
        hosts.ssh_delay_s |= ssh_delay_s.get(node["name"].rpartition("/")[2], {})
        return hosts

    return make_hosts


@contextmanager
def served(handler: type[BaseHTTPRequestHandler]) -> Iterator[int]:
    """Serves HTTP on 127.0.0.1 while the context is open; yields the port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


def gcloud_env(root: Path, home: Path, port: int) -> dict[str, str]:
    """Returns the variables that direct the real gcloud to the simulated cloud."""
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
    """Returns the number of VMs: v5litepod and v6e count chips and have one VM up to 8, v4 and v5p count cores."""
    kind, _, size = node["acceleratorType"].rpartition("-")
    if kind in ("v4", "v5p"):
        return max(1, int(size) // CORES_PER_VM)
    return 1 if int(size) <= 8 else int(size) // CHIPS_PER_VM


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
