"""The `cloud` section of the configuration: where and how the launcher gets a TPU pod. Hosts do not read it."""

import re
from dataclasses import dataclass, field
from enum import Enum

from pod_job.errors import JobError, at_least

RESOURCE_NAME = re.compile(r"[a-z]([-a-z0-9]{0,59}[a-z0-9])?")
ZONE = re.compile(r"[a-z]+-[a-z]+[0-9]+-[a-z]")
LABEL_KEY = re.compile(r"[a-z][-_a-z0-9]{0,62}")
LABEL_VALUE = re.compile(r"[-_a-z0-9]{0,63}")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
RESERVATION = re.compile(r"(projects/[^/\s]+/(locations/[^/\s]+/)?reservations/)?[A-Za-z0-9-]+")
UPLOADS = re.compile(r"gs://[a-z0-9][a-z0-9._-]+[a-z0-9](/.*)?")
MOST_FLEX_HOURS = 168


class Capacity(Enum):
    """Kind of capacity: `spot` is cheapest and can be preempted at any time, `reserved` is bought beforehand,
    `flex_start` waits in a queue and then runs without preemption for `cloud.flex_hours` at most."""

    spot = "spot"
    on_demand = "on_demand"
    reserved = "reserved"
    flex_start = "flex_start"


@dataclass(kw_only=True)
class CloudConfig:
    name: str | None = None  # name of the pod; null: derived from storage.run_dir
    project: str | None = None  # Google Cloud project; null: gcloud's default
    zones: list[str] = field(default_factory=list)  # zones to try, in this order
    capacity: Capacity = Capacity.spot
    reservation: str | None = None  # with capacity=reserved, name of the reservation; null: any that fits
    flex_hours: float | None = None  # with capacity=flex_start, hours after which the pod is deleted, at most 168
    queued: bool = True  # request a queued resource, which waits for capacity; false: create the pod at once or fail
    valid_until: str = "6h"  # time after which an unserved queued resource expires
    zone_wait_s: int = 900  # longest wait in the queue of one zone before the next zone is tried
    rounds: int = 5  # rounds through all zones, with a growing pause between them
    labels: dict[str, str] = field(default_factory=dict)  # further labels of the pod
    service_account: str | None = None  # service account of the hosts; null: the project's default
    network: str | None = None  # VPC network of the hosts; null: the project's `default`
    subnetwork: str | None = None  # subnetwork of the hosts, in the zone's region; null: that of the network
    tags: list[str] = field(default_factory=list)  # network tags of the hosts, for firewall rules
    create_flags: list[str] = field(default_factory=list)  # further flags of gcloud's create command, unchanged
    internal_ip: bool = False  # hosts without external addresses, reached by their internal ones
    iap: bool = False  # reach hosts through Identity-Aware Proxy, which needs the alpha component of gcloud
    shared_folders: list[str] = field(default_factory=list)  # folders that all hosts have mounted at the same path
    uploads: str | None = (
        None  # gs:// folder for local task files and models; null: pod-job-uploads in the run's bucket
    )
    ssh_flags: list[str] = field(default_factory=list)  # flags passed to ssh unchanged
    secrets: list[str] = field(default_factory=list)  # environment variables to send to hosts by name: HF_TOKEN
    python: str | None = None  # a Python on the hosts with all dependencies; null: uv makes an environment
    environments: str | None = None  # gs:// folder of environments as archives, for hosts without a way out; null: uv
    preemptions: int = 50  # preemptions after which `watch` gives up
    bad_machines: int = 3  # pods with a machine that is bad or out of reach after which `watch` gives up
    failures: int = 2  # lost hosts after which `watch` gives up
    max_hours: float | None = (
        None  # hours that the run's pods may be paid for, in all; then it is stopped, pods deleted
    )
    max_usd: float | None = None  # dollars that the run's pods may cost, in all; then it is stopped, pods deleted
    stall_s: int = 900  # time without progress after which hosts count as hung
    price_per_chip_hour: float | None = None  # price in USD, where it differs from the list price

    def __post_init__(self) -> None:
        matches("cloud.name", [self.name] if self.name is not None else [], RESOURCE_NAME)
        matches("cloud.zones", self.zones, ZONE)
        matches("cloud.labels", list(self.labels), LABEL_KEY)
        matches("cloud.labels", list(self.labels.values()), LABEL_VALUE)
        matches("cloud.secrets", self.secrets, VARIABLE)
        matches("cloud.tags", self.tags, RESOURCE_NAME)
        matches("cloud.reservation", [self.reservation] if self.reservation is not None else [], RESERVATION)
        self.check_capacity()
        self.check_environments()
        if self.uploads is not None and not UPLOADS.fullmatch(self.uploads):
            raise JobError(f"cloud.uploads={self.uploads} is not a place in a bucket; use gs://bucket/folder")
        for name in ("zone_wait_s", "rounds", "stall_s"):
            at_least(f"cloud.{name}", getattr(self, name), 1)
        for name in ("preemptions", "bad_machines", "failures"):
            at_least(f"cloud.{name}", getattr(self, name), 0)
        for name in ("max_hours", "max_usd"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise JobError(f"cloud.{name}={value:g} is too small; use more than 0, or null for no limit")

    def check_capacity(self) -> None:
        """Raises JobError for a field that belongs to another kind of capacity."""
        for name, kind in (("reservation", Capacity.reserved), ("flex_hours", Capacity.flex_start)):
            value = getattr(self, name)
            if value is not None and self.capacity is not kind:
                raise JobError(
                    f"cloud.{name}={value} has no effect with cloud.capacity={self.capacity.value}; "
                    f"set cloud.capacity={kind.value}, or leave it out"
                )
        if self.capacity is not Capacity.flex_start:
            return
        if self.flex_hours is None or not 0 < self.flex_hours <= MOST_FLEX_HOURS:
            raise JobError(
                f"cloud.flex_hours={self.flex_hours}: capacity=flex_start needs the hours after which the pod is "
                f"deleted; give more than 0 and at most {MOST_FLEX_HOURS}"
            )
        if not self.queued:
            raise JobError("cloud.queued=false: capacity=flex_start waits in a queue; use cloud.queued=true")

    def check_environments(self) -> None:
        """Raises JobError for archives that hosts could not fetch, or would not use."""
        if self.environments is None:
            return
        if not re.fullmatch(r"gs://[^/]+(/.*)?", self.environments):
            raise JobError(
                f"cloud.environments={self.environments} is not in a bucket, from which hosts fetch it; use "
                "gs://bucket/folder"
            )
        if self.python is not None:
            raise JobError(
                f"cloud.environments={self.environments} has no effect with cloud.python={self.python}; leave one out"
            )


def matches(name: str, values: list[str], rule: re.Pattern[str]) -> None:
    """Raises JobError for a value that does not match the whole rule."""
    for value in values:
        if not rule.fullmatch(value):
            raise JobError(f"{name}: {value!r} is not allowed; it must match {rule.pattern}")
