"""Command of each host of a pod: pure functions of the configuration, for `plan`, `run` and `--dry-run`."""

import secrets
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pod_job import environment
from pod_job.config.schema import JobConfig, PodKind


@dataclass(frozen=True)
class HostCommand:
    """Command of one host: `argv`, with `env` added to its environment."""

    argv: list[str]
    env: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """Returns the command as one line for a POSIX shell."""
        settings = [f"{name}={shlex.quote(value)}" for name, value in self.env.items()]
        return " ".join([*settings, shlex.join(self.argv)])


def host_commands(config: JobConfig, overrides: Sequence[str], coordinator: str, attempt: str) -> list[HostCommand]:
    """Returns one command per host, in the order of their index.

    Args:
        overrides: the Hydra overrides that made `config`; every host gets them as they are.
        coordinator: host:port on which a local pod's host 0 is found; a TPU pod finds its own.
        attempt: token of this start, the same on every host.
    """
    if config.pod.kind is PodKind.tpu:
        settings = {environment.ATTEMPT: attempt, environment.RUN: config.storage.run_dir}
        job = HostCommand(["python3", "-m", "pod_job", *overrides], settings)
        return [job] * config.pod.hosts
    return [
        HostCommand(
            [sys.executable, "-m", "pod_job", *overrides],
            environment.local_host(host, config.pod.devices_per_host, coordinator, attempt),
        )
        for host in range(config.pod.hosts)
    ]


def new_attempt() -> str:
    """Returns a token that no earlier start has had; tokens sort by time."""
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()) + "-" + secrets.token_hex(3)
