"""State of the simulated Cloud TPU: nodes, queued resources, operations, and faults that a test injects.

`tools.fakepod.api` maps HTTP requests to these methods. Records are the JSON of API version v2,
https://cloud.google.com/tpu/docs/reference/rest/v2.
"""

import itertools
import re
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from pod_job.formats.records import now

Record = dict[str, Any]

CREATE_S = 0.3  # from request to READY
INVALID_ARGUMENT, NOT_FOUND, ALREADY_EXISTS, PERMISSION_DENIED = 3, 5, 6, 7
RESOURCE_EXHAUSTED, FAILED_PRECONDITION, INTERNAL, UNAVAILABLE, UNAUTHENTICATED = 8, 9, 13, 14, 16
CAPACITY = "There is no more capacity in the zone; you can try in another zone where Cloud TPU nodes are offered"
QUOTA = "Quota limit 'TPUV5sPreemptibleLitepodPerProjectPerZoneForTPUAPI' has been exceeded. Limit: 0 in zone"


PERMISSION = "User does not have permission to submit requests for accelerator type"


class ApiError(Exception):
    """Response other than 200: a google.rpc code and a message."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Dropped(Exception):
    """The connection ends without a response."""


@dataclass(frozen=True)
class Outage:
    """Requests that fail with `error` until `until`: those of `method`, or all."""

    error: ApiError | Dropped
    until: float
    method: str | None = None


class Machines(Protocol):
    """Hosts of one node: their addresses, and how they start and stop."""

    addresses: list[str]

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def announce_preemption(self) -> None: ...

    def host_keys(self) -> list[str]: ...


class Cloud:
    """Cloud TPU in all locations of one project. Its methods may be called from any thread."""

    def __init__(
        self,
        project: str,
        new_machines: Callable[[Record], Machines],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        stamp: Callable[[], str] = now,
    ) -> None:
        self.project = project
        self.new_machines = new_machines
        self.clock, self.sleep, self.stamp = clock, sleep, stamp
        self.create_s = CREATE_S
        self.grant_s = 0.0  # from a queued resource's request to its node
        self.outages: list[Outage] = []
        self.undeletable_until: defaultdict[str, float] = defaultdict(float)  # node -> moment
        self.refused_deletions: set[str] = set()  # nodes whose deletion was asked for and refused
        self.lock = threading.RLock()
        self.nodes: dict[str, Record] = {}
        self.queued: dict[str, Record] = {}
        self.operations: dict[str, Record] = {}
        self.machines: dict[str, Machines] = {}
        self.ready_at: dict[str, float] = {}
        self.granted_at: dict[str, float] = {}  # queued resource -> moment at which its node is made
        self.refusals: defaultdict[str, deque[ApiError]] = defaultdict(deque)  # zone -> errors of its next creations
        self.not_offered: set[tuple[str, str]] = set()  # zone, accelerator type
        self.created: list[str] = []  # zones, in the order of the requests for nodes
        self.numbers = itertools.count(1)

    # Faults.

    def refuse(self, zone: str, reason: str, times: int = 1, code: int = RESOURCE_EXHAUSTED) -> None:
        """Makes the next `times` creations in the zone fail with `reason` (CAPACITY, QUOTA or any text)."""
        self.refusals[zone].extend([ApiError(code, reason)] * times)

    def fail_requests(self, error: ApiError | Dropped, for_s: float, method: str | None = None) -> None:
        """Makes requests fail from now on, of one HTTP method or all."""
        self.outages.append(Outage(error, self.clock() + for_s, method))

    def check_available(self, method: str) -> None:
        """Raises the error of an outage that lasts."""
        with self.lock:
            for outage in self.outages:
                if self.clock() < outage.until and outage.method in (None, method):
                    raise outage.error

    def refuse_deletion(self, node_id: str, for_s: float) -> None:
        """Makes deletions of the node fail, as those of one that is stopping do."""
        self.undeletable_until[node_id] = self.clock() + for_s

    def set_health(self, node_id: str, health: str) -> None:
        with self.lock:
            self.nodes[self._only(self.nodes, node_id)]["health"] = health

    def preempt(self, node_id: str, notice_s: float = 0.0, suspending_s: float = 0.0) -> None:
        """Preempts the node: notifies its hosts, stops them, sets it PREEMPTED and its queued resource SUSPENDED.

        Args:
            suspending_s: for how long both cannot be deleted, while the queued resource is SUSPENDING.
        """
        name = self._only(self.nodes, node_id)
        self.machines[name].announce_preemption()
        self.sleep(notice_s)
        with self.lock:
            self.machines[name].stop()
            self.nodes[name]["state"] = "PREEMPTED"
            self.refuse_deletion(node_id, suspending_s)
            for queued in self.queued.values():
                if queued["tpu"]["nodeSpec"][0]["nodeId"] == node_id:
                    queued["state"] = {"state": "SUSPENDING", "stateInitiator": "SERVICE"}

    def addresses(self, node_id: str) -> list[str]:
        return self.machines[self._only(self.nodes, node_id)].addresses

    # Methods of the API.

    def create_node(self, parent: str, node_id: str, node: Record) -> Record:
        with self.lock:
            name = f"{parent}/nodes/{node_id}"
            if name in self.nodes:
                raise ApiError(ALREADY_EXISTS, f"Resource '{name}' already exists")
            self.created.append(zone_of(name))
            if self.refusals[zone_of(name)]:
                refusal = self.refusals[zone_of(name)].popleft()
                if refusal.code in (INVALID_ARGUMENT, PERMISSION_DENIED):
                    raise refusal
                return self._operation(parent, error=refusal)
            self._add_node(name, node)
            return self._operation(parent, waits_for=name)

    def delete_node(self, name: str) -> Record:
        with self.lock:
            self.get(self.nodes, name)
            self._check_deletable(name)
            self._remove_node(name)
            return self._operation(parent_of(name))

    def update_node(self, name: str, changes: Record) -> Record:
        """Changes metadata, labels or tags of a node, which gcloud does to give it an ssh key."""
        with self.lock:
            self.get(self.nodes, name).update(changes)
            return self._operation(parent_of(name))

    def create_queued(self, parent: str, queued_id: str, queued: Record) -> Record:
        with self.lock:
            name = f"{parent}/queuedResources/{queued_id}"
            if name in self.queued:
                raise ApiError(ALREADY_EXISTS, f"Resource '{name}' already exists")
            self.created.append(zone_of(name))
            refusal = self.refusals[zone_of(name)].popleft() if self.refusals[zone_of(name)] else None
            if refusal is not None and refusal.code in (INVALID_ARGUMENT, PERMISSION_DENIED):
                raise refusal
            self.queued[name] = {**queued, "name": name, "createTime": self.stamp(), "state": {"state": "ACCEPTED"}}
            if refusal is not None:
                error = {"code": refusal.code, "message": str(refusal)}
                self.queued[name]["state"] = {"state": "FAILED", "failedData": {"error": error}}
            else:
                self.queued[name]["state"] = {"state": "WAITING_FOR_RESOURCES"}
                self.granted_at[name] = self.clock() + self.grant_s
                self._advance()
            return self._operation(parent)

    def delete_queued(self, name: str, force: bool) -> Record:
        with self.lock:
            queued = self.get(self.queued, name)
            node = f"{parent_of(name)}/nodes/{queued['tpu']['nodeSpec'][0]['nodeId']}"
            if node in self.nodes:
                if not force:
                    raise ApiError(FAILED_PRECONDITION, f"{name} has nodes; use force to delete them with it")
                self._check_deletable(node)
                self._remove_node(node)
            del self.queued[name]
            self.granted_at.pop(name, None)
            return self._operation(parent_of(name))

    def _check_deletable(self, node: str) -> None:
        if self.clock() < self.undeletable_until[node_id := node.rpartition("/")[2]]:
            self.refused_deletions.add(node_id)
            raise ApiError(FAILED_PRECONDITION, f"The resource '{node}' is being stopped; it cannot be deleted now")

    def accelerator_type(self, name: str) -> Record:
        """Returns the accelerator type, which every zone offers unless it is in `not_offered`."""
        kind = name.rpartition("/")[2]
        if (zone_of(name), kind) in self.not_offered:
            raise ApiError(NOT_FOUND, f"Resource '{name}' was not found")
        return {"name": name, "type": kind}

    def get(self, table: dict[str, Record], name: str) -> Record:
        with self.lock:
            self._advance()
            if name not in table:
                raise ApiError(NOT_FOUND, f"Resource '{name}' was not found")
            return table[name]

    def list(self, table: dict[str, Record], parent: str) -> list[Record]:
        """Returns all records under projects/P/locations/Z; Z may be `-` for any zone."""
        with self.lock:
            self._advance()
            pattern = re.compile(re.escape(parent).replace(re.escape("locations/-"), "locations/[^/]+") + "/")
            return [record for name, record in table.items() if pattern.match(name)]

    def guest_attributes(self, name: str, worker: str) -> Record:
        """Returns the ssh host keys of all workers, or of `worker` where it is not empty."""
        self.get(self.nodes, name)
        keys = self.machines[name].host_keys()
        chosen = [keys[int(worker)]] if worker else keys
        item = {"namespace": "hostkeys", "key": "ssh-ed25519"}
        return {"guestAttributes": [{"queryValue": {"items": [{**item, "value": key}]}} for key in chosen]}

    def _add_node(self, name: str, node: Record) -> None:
        number = next(self.numbers)
        record = {**node, "name": name, "id": str(number), "state": "CREATING", "createTime": self.stamp()}
        self.machines[name] = self.new_machines(record)
        record["networkEndpoints"] = [{"ipAddress": ip, "port": 8470} for ip in self.machines[name].addresses]
        self.nodes[name] = {"apiVersion": "V2", "health": "HEALTHY", **record}
        self.ready_at[name] = self.clock() + self.create_s

    def _remove_node(self, name: str) -> None:
        self.machines.pop(name).stop()
        del self.nodes[name]

    def _advance(self) -> None:
        """Makes the nodes of requests that are granted, sets nodes READY whose time has come, and the states of their
        queued resources.
        """
        for name in [name for name, moment in self.granted_at.items() if self.clock() >= moment]:
            del self.granted_at[name]
            spec = self.queued[name]["tpu"]["nodeSpec"][0]
            self._add_node(f"{parent_of(name)}/nodes/{spec['nodeId']}", spec["node"])
        for name, node in self.nodes.items():
            if node["state"] == "CREATING" and self.clock() >= self.ready_at[name]:
                self.machines[name].start()
                node["state"] = "READY"
        for name, queued in self.queued.items():
            node_id, state = queued["tpu"]["nodeSpec"][0]["nodeId"], queued["state"]["state"]
            node = self.nodes.get(f"{parent_of(name)}/nodes/{node_id}")
            if state == "SUSPENDING" and self.clock() >= self.undeletable_until[node_id]:
                queued["state"] = {"state": "SUSPENDED", "stateInitiator": "SERVICE"}
            elif node is not None and state not in ("SUSPENDING", "SUSPENDED", "FAILED"):
                queued["state"] = {"state": "ACTIVE" if node["state"] == "READY" else "PROVISIONING"}

    def _operation(self, parent: str, waits_for: str | None = None, error: ApiError | None = None) -> Record:
        """Returns a new long-running operation; it is done when the node `waits_for` is READY."""
        name = f"{parent}/operations/operation-{next(self.numbers)}"
        self.operations[name] = {"name": name, "done": True, "response": {"@type": "type.googleapis.com/Any"}}
        if error is not None:
            failed = {"code": error.code, "message": str(error)}
            self.operations[name] = {"name": name, "done": True, "error": failed}
        if waits_for is not None:
            self.operations[name] |= {"done": False, "metadata": {"target": waits_for}}
        return self.operations[name]

    def operation(self, name: str) -> Record:
        operation = self.get(self.operations, name)
        node = self.nodes.get(operation.get("metadata", {}).get("target", ""))
        return operation | {"done": node is None or node["state"] != "CREATING"}

    def _only(self, table: dict[str, Record], last: str) -> str:
        (name,) = (name for name in table if name.endswith(f"/{last}"))
        return name


def parent_of(name: str) -> str:
    """Returns projects/P/locations/Z from a resource's name."""
    return "/".join(name.split("/")[:4])


def zone_of(name: str) -> str:
    return name.split("/")[3]
