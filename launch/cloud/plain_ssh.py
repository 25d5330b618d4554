"""Command lines of plain ssh, for hosts that the user has started, as pure functions: values in, argv out."""

from collections.abc import Sequence

from launch.cloud.gcloud import SSH_OPTIONS, Reach


def ssh(reach: Reach, worker: int, command: str) -> list[str]:
    """Runs `command` on one host."""
    host = reach.hosts[worker]
    port = [] if host.port is None else ["-p", str(host.port)]
    return ["ssh", *options(reach), *port, host.target, command]


def resolve(reach: Reach, worker: int) -> list[str]:
    """Prints what ssh has for one host, of ~/.ssh/config too, and connects to nothing."""
    host = reach.hosts[worker]
    port = [] if host.port is None else ["-p", str(host.port)]
    return ["ssh", "-G", *reach.ssh_flags, *port, host.target]


def scp(reach: Reach, worker: int, source: str, target: str) -> list[str]:
    """Copies a local file to `target` in the home folder of one host."""
    host = reach.hosts[worker]
    port = [] if host.port is None else ["-P", str(host.port)]
    name = host.target.replace(host.name, f"[{host.name}]") if ":" in host.name else host.target
    return ["scp", "-q", *options(reach), *port, source, f"{name}:{target}"]


def options(reach: Reach) -> Sequence[str]:
    return [*(f"-o{option}" for option in SSH_OPTIONS), *reach.ssh_flags]
