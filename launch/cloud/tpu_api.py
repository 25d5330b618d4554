"""Records of the Cloud TPU API as gcloud prints them; fields that nothing here reads are left out."""

import msgspec


class Endpoint(msgspec.Struct, frozen=True, rename="camel"):
    """Network address of a node's worker."""

    ip_address: str = ""


class Symptom(msgspec.Struct, frozen=True, rename="camel"):
    """Something that the API has seen go wrong on a node's worker."""

    symptom_type: str = ""
    worker_id: str = ""

    def __str__(self) -> str:
        return " ".join(filter(None, [self.symptom_type, self.worker_id]))


class Maintenance(msgspec.Struct, frozen=True, rename="camel"):
    """A maintenance that is announced."""

    window_start_time: str | None = None


class Node(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """A TPU node as `gcloud compute tpus tpu-vm list` prints it.

    https://cloud.google.com/tpu/docs/reference/rest/v2/projects.locations.nodes
    """

    name: str
    state: str = ""
    accelerator_type: str = ""
    create_time: str | None = None
    health: str = ""
    health_description: str = ""
    labels: dict[str, str] = {}
    network_endpoints: list[Endpoint] = []
    symptoms: list[Symptom] = []
    upcoming_maintenance: Maintenance = Maintenance()


class RequestedNode(msgspec.Struct, frozen=True, rename="camel"):
    """The node that a queued resource asks for."""

    accelerator_type: str = ""
    labels: dict[str, str] = {}


class NodeSpec(msgspec.Struct, frozen=True, rename="camel"):
    node: RequestedNode = RequestedNode()
    node_id: str | None = None


class Tpu(msgspec.Struct, frozen=True, rename="camel"):
    node_spec: list[NodeSpec] = []


class Error(msgspec.Struct, frozen=True):
    message: str | None = None


class FailedData(msgspec.Struct, frozen=True):
    error: Error = Error()


class QueuedState(msgspec.Struct, frozen=True, rename="camel"):
    state: str = ""
    failed_data: FailedData = FailedData()


class QueuedResource(msgspec.Struct, frozen=True, rename="camel"):
    """A queued resource as `gcloud compute tpus queued-resources list` prints it.

    https://cloud.google.com/tpu/docs/reference/rest/v2/projects.locations.queuedResources
    """

    name: str
    state: QueuedState = QueuedState()
    tpu: Tpu = Tpu()

    @property
    def id(self) -> str:
        return self.name.rpartition("/")[2]

    @property
    def spec(self) -> NodeSpec:
        """The first node that it asks for, which is the only one of a request of the launcher."""
        return self.tpu.node_spec[0] if self.tpu.node_spec else NodeSpec()

    @property
    def requested(self) -> RequestedNode:
        return self.spec.node

    @property
    def node_id(self) -> str:
        return self.spec.node_id or self.id


class Nodes(msgspec.Struct, frozen=True):
    items: list[Node]


class QueuedResources(msgspec.Struct, frozen=True):
    items: list[QueuedResource]
