"""Pods in the cloud: gcloud's lists of nodes and queued resources in, one `Pod` for each name and zone out."""

import re
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from launch import clock
from launch.cloud import gcloud
from launch.cloud.calls import (
    DELETE_TIMEOUT_S,
    LIST_TIMEOUT_S,
    PATIENCE_S,
    Patience,
    call_api,
    gcloud_error,
    json_in,
    passes_by_itself,
)
from launch.cloud.tpu_api import Node, Nodes, QueuedResource, QueuedResources, RequestedNode
from launch.view.timed_log import Log
from pod_job.errors import JobError
from pod_job.formats.records import decode

MADE_BY = {"made-by": "pod-job"}
"""Label of everything the launcher creates."""
# https://cloud.google.com/tpu/docs/reference/rest/v2/projects.locations.nodes#State and ...queuedResources#State
GRANTED = {"PROVISIONING", "CREATING", "ACTIVE"}
DEAD = {
    *("GONE", "STOPPING", "STOPPED", "DELETING", "TERMINATED", "PREEMPTED", "HIDING", "HIDDEN"),
    *("FAILED", "SUSPENDING", "SUSPENDED"),
}
"""States of what will not be READY again by itself. A state that is not known here may well be one on the way to READY:
such a pod is waited for, within limits, and never deleted by `gc`."""

DELETE_EVERY_S, DELETE_PATIENCE_S = 10.0, 1800.0

RESOURCE = re.compile(r"projects/[^/]+/locations/([^/]+)/[^/]+/([^/]+)")

Listing = TypeVar("Listing", Nodes, QueuedResources)


@dataclass(frozen=True)
class Pod:
    """A pod as the API has it: its node, its queued resource, or both; None for one that does not exist."""

    name: str
    zone: str
    node: Node | None
    queued: QueuedResource | None

    @property
    def state(self) -> str:
        """The node's state; while there is no node, the queued resource's."""
        if self.node is not None and (self.queued_state in (None, "ACTIVE") or self.node.state != "READY"):
            return self.node.state
        return self.queued_state or "GONE"

    @property
    def queued_state(self) -> str | None:
        return None if self.queued is None else self.queued.state.state

    @property
    def ready(self) -> bool:
        return self.state == "READY"

    @property
    def coming(self) -> bool:
        return not self.ready and self.state not in DEAD

    @property
    def error(self) -> str | None:
        """Why a queued resource failed."""
        return None if self.queued is None else self.queued.state.failed_data.error.message

    @property
    def health(self) -> str:
        """The node's health, and its description where there is one."""
        return "" if self.node is None else ", ".join(filter(None, [self.node.health, self.node.health_description]))

    @property
    def symptoms(self) -> list[str]:
        return [] if self.node is None else [str(symptom) for symptom in self.node.symptoms]

    @property
    def maintenance(self) -> str | None:
        """When the next maintenance that is announced begins."""
        return None if self.node is None else self.node.upcoming_maintenance.window_start_time

    @property
    def unhealthy(self) -> bool:
        """Returns whether the API says that the node does not work."""
        return self.node is not None and self.node.health.startswith(("UNHEALTHY", "TIMEOUT"))

    @property
    def granted(self) -> bool:
        """Returns whether a node is being made: no longer a request that waits for capacity."""
        return self.node is not None or self.queued_state in GRANTED

    @property
    def addresses(self) -> list[str]:
        """IP addresses of the node's workers, in the order of their index."""
        return [] if self.node is None else [endpoint.ip_address for endpoint in self.node.network_endpoints]

    @property
    def workers(self) -> int:
        return len(self.addresses)

    @property
    def resource(self) -> str:
        """Name in the API of what is deleted with the pod: its queued resource, else its node."""
        return self.queued.name if self.queued is not None else self.node.name if self.node is not None else ""

    @property
    def labels(self) -> dict[str, str]:
        return self._described.labels

    @property
    def accelerator_type(self) -> str:
        return self._described.accelerator_type

    @property
    def _described(self) -> Node | RequestedNode:
        if self.node is not None:
            return self.node
        return RequestedNode() if self.queued is None else self.queued.requested

    @property
    def created(self) -> float:
        """Unix time of the node's creation; 0 without one."""
        if self.node is None or self.node.create_time is None:
            return 0.0
        return datetime.fromisoformat(self.node.create_time).timestamp()

    def age_s(self, now: float) -> float:
        """Returns the seconds since the node was created; 0 without one."""
        return max(0.0, now - self.created) if self.created else 0.0


def list_pods(project: str | None, patience_s: float = PATIENCE_S) -> list[Pod]:
    """Returns all pods of the project in all zones. Raises JobError where gcloud cannot list them for `patience_s`."""
    with ThreadPoolExecutor(2) as pool:
        nodes = pool.submit(_listed, gcloud.list_nodes(project), Nodes, patience_s)
        resources = pool.submit(_listed, gcloud.list_queued(project), QueuedResources, patience_s)
    by_node = {_zone_and_last(node.name): node for node in nodes.result().items}
    by_queued = {(_zone_and_last(queued.name)[0], queued.node_id): queued for queued in resources.result().items}
    keys = sorted(by_node.keys() | by_queued.keys())
    return [Pod(name, zone, by_node.get((zone, name)), by_queued.get((zone, name))) for zone, name in keys]


def find_pods(name: str, project: str | None, patience_s: float = PATIENCE_S) -> list[Pod]:
    """Returns the pods of that name, at most one a zone."""
    return [pod for pod in list_pods(project, patience_s) if pod.name == name]


def find_all(names: Collection[str], project: str | None, patience_s: float = PATIENCE_S) -> list[Pod]:
    """Returns the pods of these names."""
    return [pod for pod in list_pods(project, patience_s) if pod.name in names]


def delete_commands(pod: Pod, project: str | None) -> list[list[str]]:
    """Returns the commands that delete the pod; a queued resource takes its node along."""
    if pod.queued is not None:
        return [gcloud.delete_queued(pod.queued.id, pod.zone, project)]
    return [gcloud.delete_node(pod.name, pod.zone, project)]


def delete(pod: Pod, project: str | None, log: Log) -> None:
    """Deletes a pod; one that is gone already counts as deleted.

    A pod that is stopping refuses until it has stopped: that is waited for, as what passes by itself.

    Raises:
        JobError: gcloud's reason, after DELETE_PATIENCE_S or where waiting does not help.
    """
    deadline, shown = clock.monotonic() + DELETE_PATIENCE_S, ""
    for command in delete_commands(pod, project):
        while True:
            done = call_api(command, DELETE_TIMEOUT_S, patience_s=0)
            if done.code == 0 or "NOT_FOUND" in done.err:
                break
            reason = gcloud_error(done.err)
            waits = passes_by_itself(done) or "FAILED_PRECONDITION" in done.err
            if not waits or clock.monotonic() > deadline:
                raise JobError(f"{pod.name} in {pod.zone} could not be deleted: {reason}")
            if reason != shown:
                shown = reason
                log(f"{pod.name} in {pod.zone} cannot be deleted now: {reason}; trying again")
            clock.sleep(DELETE_EVERY_S)


def _listed(argv: Sequence[str], kind: type[Listing], patience_s: float) -> Listing:
    patience = Patience(patience_s)
    while True:
        done = call_api(argv, LIST_TIMEOUT_S, patience_s)
        if done.code:
            raise JobError(f"gcloud cannot list TPUs: {gcloud_error(done.err)}; run `pod-job doctor`")
        if (items := json_in(done.out, "[")) is not None:
            return decode(f'{{"items": {items}}}', kind, " ".join(argv[:5]))
        if patience.over:
            raise JobError(f"gcloud lists TPUs as {done.out[:100]!r}, which is no list in JSON; run `pod-job doctor`")
        patience.wait()  # it was cut short, or is a page of a proxy: the next answer may be whole


def _zone_and_last(name: str) -> tuple[str, str]:
    if not (match := RESOURCE.fullmatch(name)):
        raise JobError(f"gcloud lists {name[:100]!r}, which is no name of a TPU; update it, `gcloud components update`")
    return match[1], match[2]
