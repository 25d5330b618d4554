"""The pods there are: gcloud's lists of nodes and queued resources in, one `Pod` for each name and zone out."""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from launch.cloud import gcloud
from launch.shell import call
from pod_job.errors import JobError

MADE_BY = {"made-by": "pod-job"}
"""Label of everything the launcher creates."""
# https://cloud.google.com/tpu/docs/reference/rest/v2/projects.locations.nodes#State and ...queuedResources#State
COMING = {"CREATING", "STARTING", "RESTARTING", "REPAIRING", "ACCEPTED", "PROVISIONING", "WAITING_FOR_RESOURCES"}


@dataclass(frozen=True)
class Pod:
    """A pod as the API has it: its node, its queued resource, or both; None for what is not there."""

    name: str
    zone: str
    node: dict[str, Any] | None
    queued: dict[str, Any] | None

    @property
    def state(self) -> str:
        """The node's state; while there is no node, the queued resource's."""
        if self.node is not None and (self.queued_state in (None, "ACTIVE") or self.node["state"] != "READY"):
            return self.node["state"]
        return self.queued_state or "GONE"

    @property
    def queued_state(self) -> str | None:
        return None if self.queued is None else self.queued["state"]["state"]

    @property
    def ready(self) -> bool:
        return self.state == "READY"

    @property
    def coming(self) -> bool:
        return self.state in COMING or (self.state == "ACTIVE" and self.node is None)

    @property
    def error(self) -> str | None:
        """Why a queued resource failed."""
        failed = (self.queued or {}).get("state", {}).get("failedData", {})
        return failed.get("error", {}).get("message")

    @property
    def health(self) -> str:
        """The node's health as the API says it, and in words where there is more to say."""
        node = self.node or {}
        return ", ".join(filter(None, [node.get("health", ""), node.get("healthDescription", "")]))

    @property
    def symptoms(self) -> list[str]:
        """What the API has seen go wrong on the node's workers."""
        found = (self.node or {}).get("symptoms", [])
        return [" ".join(filter(None, [each.get("symptomType"), each.get("workerId")])) for each in found]

    @property
    def maintenance(self) -> str | None:
        """When the next maintenance that is announced begins."""
        return (self.node or {}).get("upcomingMaintenance", {}).get("windowStartTime")

    @property
    def workers(self) -> int:
        return len((self.node or {}).get("networkEndpoints", []))

    @property
    def labels(self) -> dict[str, str]:
        node = self.node or (self.queued or {})["tpu"]["nodeSpec"][0]["node"]
        return node.get("labels", {})

    @property
    def accelerator_type(self) -> str:
        node = self.node or (self.queued or {})["tpu"]["nodeSpec"][0]["node"]
        return node.get("acceleratorType", "")

    @property
    def created(self) -> float:
        """Unix time of the node's creation; 0 without one."""
        said = (self.node or {}).get("createTime")
        return datetime.fromisoformat(said).timestamp() if said else 0.0

    def age_s(self, now: float) -> float:
        """Seconds since the node was created; 0 without one."""
        return max(0.0, now - self.created) if self.created else 0.0


def list_pods(project: str | None) -> list[Pod]:
    """All pods of the project in all zones. Raises JobError when gcloud cannot tell."""
    with ThreadPoolExecutor(2) as pool:
        nodes, queued = pool.map(_listed, (gcloud.list_nodes(project), gcloud.list_queued(project)))
    by_node = {_zone_and_last(node["name"]): node for node in nodes}
    by_queued = {(_zone_and_last(each["name"])[0], node_id(each)): each for each in queued}
    keys = sorted(by_node.keys() | by_queued.keys())
    return [Pod(name, zone, by_node.get((zone, name)), by_queued.get((zone, name))) for zone, name in keys]


def find_pods(name: str, project: str | None) -> list[Pod]:
    """The pods of that name, at most one a zone."""
    return [pod for pod in list_pods(project) if pod.name == name]


def delete_commands(pod: Pod, project: str | None) -> list[list[str]]:
    """What removes the pod: its queued resource takes its node along."""
    if pod.queued is not None:
        return [gcloud.delete_queued(pod.queued["name"].rpartition("/")[2], pod.zone, project)]
    return [gcloud.delete_node(pod.name, pod.zone, project)]


def delete(pod: Pod, project: str | None) -> None:
    """Deletes a pod; one that is gone already counts as deleted. Raises JobError with gcloud's words otherwise."""
    for command in delete_commands(pod, project):
        done = call(command)
        if done.code and "NOT_FOUND" not in done.err:
            raise JobError(f"{pod.name} in {pod.zone} could not be deleted: {gcloud_error(done.err)}")


def node_id(queued: dict[str, Any]) -> str:
    return queued["tpu"]["nodeSpec"][0].get("nodeId", queued["name"].rpartition("/")[2])


def gcloud_error(text: str) -> str:
    """The reason in gcloud's stderr, in one line."""
    lines = text.strip().splitlines()
    starts = [index for index, line in enumerate(lines) if line.startswith("ERROR:")]
    reason = " ".join(line.strip() for line in lines[starts[0] :] if line.strip()) if starts else " ".join(lines[-1:])
    return reason or "no reason given"


def _listed(argv: Sequence[str]) -> list[dict[str, Any]]:
    done = call(argv)
    if done.code:
        raise JobError(f"gcloud cannot list TPUs: {gcloud_error(done.err)}; run `pod-job doctor`")
    return json.loads(done.out or "[]")


def _zone_and_last(name: str) -> tuple[str, str]:
    parts = name.split("/")
    return parts[3], parts[5]
