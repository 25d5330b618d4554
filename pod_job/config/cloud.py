"""The `cloud` section of the configuration: where and how the launcher gets a TPU pod. Hosts do not read it."""

import re
from dataclasses import dataclass, field
from enum import Enum

from pod_job.errors import JobError

RESOURCE_NAME = re.compile(r"[a-z]([-a-z0-9]{0,59}[a-z0-9])?")
ZONE = re.compile(r"[a-z]+-[a-z]+[0-9]+-[a-z]")
LABEL_KEY = re.compile(r"[a-z][-_a-z0-9]{0,62}")
LABEL_VALUE = re.compile(r"[-_a-z0-9]{0,63}")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Capacity(Enum):
    """What is paid for: `spot` is cheapest and can be taken away at any time, `reserved` is bought beforehand."""

    spot = "spot"
    on_demand = "on_demand"
    reserved = "reserved"


@dataclass(kw_only=True)
class CloudConfig:
    name: str | None = None  # of the pod; null: made from storage.run_dir
    project: str | None = None  # null: the one gcloud is set to
    zones: list[str] = field(default_factory=list)  # tried in this order
    capacity: Capacity = Capacity.spot
    queued: bool = True  # ask by a queued resource, which waits for capacity; false: at once or not at all
    valid_until: str = "6h"  # a queued resource not served by then expires
    zone_wait_s: int = 900  # how long one zone's queue is waited for before the next zone is tried
    rounds: int = 5  # through all zones, with a growing pause between
    labels: dict[str, str] = field(default_factory=dict)
    service_account: str | None = None  # of the hosts; null: the project's default one
    internal_ip: bool = False  # reach hosts by their internal addresses, from within their network
    ssh_flags: list[str] = field(default_factory=list)  # handed to ssh as they are
    secrets: list[str] = field(default_factory=list)  # variables of this machine that hosts get, HF_TOKEN; never shown
    python: str | None = None  # on the hosts, with all dependencies; null: an environment is made with uv
    preemptions: int = 50  # that `watch` puts up with before it gives up
    failures: int = 2  # the same for hosts that were lost while the pod stayed
    stall_s: int = 900  # without any progress, hosts count as hung
    price_per_chip_hour: float | None = None  # in USD; what is paid, where it is not the list price

    def __post_init__(self) -> None:
        matches("cloud.name", [self.name] if self.name is not None else [], RESOURCE_NAME)
        matches("cloud.zones", self.zones, ZONE)
        matches("cloud.labels", list(self.labels), LABEL_KEY)
        matches("cloud.labels", list(self.labels.values()), LABEL_VALUE)
        matches("cloud.secrets", self.secrets, VARIABLE)
        for name in ("zone_wait_s", "rounds", "stall_s"):
            if getattr(self, name) < 1:
                raise JobError(f"cloud.{name}={getattr(self, name)} is too small; use 1 or more")


def matches(name: str, values: list[str], rule: re.Pattern[str]) -> None:
    """Raises JobError for a value that does not match the whole rule."""
    for value in values:
        if not rule.fullmatch(value):
            raise JobError(f"{name}: {value!r} is not allowed; it must match {rule.pattern}")
