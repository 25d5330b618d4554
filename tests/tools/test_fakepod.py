"""The simulated cloud without gcloud: its states, its faults, and the answers of its API and metadata server."""

import json
import urllib.error
import urllib.request

import pytest

from tools.fakepod.api import answer
from tools.fakepod.cloud import CAPACITY, NOT_FOUND, ApiError, Cloud, Record
from tools.fakepod.metadata import MetadataServer
from tools.fakepod.world import workers_of

HERE = "projects/p/locations/us-west4-a"
NODE = {"acceleratorType": "v5litepod-16", "labels": {"a": "b"}}


class NoMachines:
    """Hosts that only remember what was asked of them."""

    def __init__(self, node: Record) -> None:
        self.addresses = [f"127.0.{node['id']}.{worker}" for worker in range(workers_of(node))]
        self.log: list[str] = []

    def start(self) -> None:
        self.log.append("start")

    def stop(self) -> None:
        self.log.append("stop")

    def announce_preemption(self) -> None:
        self.log.append("notice")

    def host_keys(self) -> list[str]:
        return [f"key-{address}" for address in self.addresses]


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Cloud:
    monkeypatch.setattr("tools.fakepod.cloud.CREATE_S", 0.0)
    return Cloud("p", NoMachines)


def ask(cloud: Cloud, method: str, path: str, body: Record | None = None, **query: str) -> Record:
    return answer(cloud, "user:key", method, f"/v2/{path}", query, body or {})


def queue(cloud: Cloud) -> Record:
    spec = {"nodeId": "n", "node": NODE, "parent": HERE}
    return ask(cloud, "POST", f"{HERE}/queuedResources", {"tpu": {"nodeSpec": [spec]}}, queuedResourceId="q")


def test_a_queued_resource_brings_its_node_and_takes_it_along(cloud: Cloud) -> None:
    assert queue(cloud)["done"]
    assert ask(cloud, "GET", f"{HERE}/queuedResources/q")["state"] == {"state": "ACTIVE"}
    node = ask(cloud, "GET", f"{HERE}/nodes/n")
    assert (node["state"], node["labels"], len(node["networkEndpoints"])) == ("READY", {"a": "b"}, 4)
    with pytest.raises(ApiError, match="use force"):
        ask(cloud, "DELETE", f"{HERE}/queuedResources/q")
    ask(cloud, "DELETE", f"{HERE}/queuedResources/q", force="true")
    assert ask(cloud, "GET", "projects/p/locations/-/nodes") == {"nodes": []}


def test_a_preempted_node_stays_until_it_is_deleted_and_comes_back_elsewhere(cloud: Cloud) -> None:
    queue(cloud)
    before = cloud.get(cloud.nodes, f"{HERE}/nodes/n")["networkEndpoints"]
    machines = cloud.machines[f"{HERE}/nodes/n"]
    cloud.preempt("n")
    assert isinstance(machines, NoMachines)
    assert machines.log == ["start", "notice", "stop"]
    assert ask(cloud, "GET", f"{HERE}/nodes/n")["state"] == "PREEMPTED"
    assert ask(cloud, "GET", f"{HERE}/queuedResources/q")["state"]["state"] == "SUSPENDED"
    with pytest.raises(ApiError, match="already exists"):
        queue(cloud)
    ask(cloud, "DELETE", f"{HERE}/queuedResources/q", force="true")
    queue(cloud)
    assert ask(cloud, "GET", f"{HERE}/nodes/n")["networkEndpoints"] != before


def test_a_refusal_is_for_one_zone_and_so_many_times(cloud: Cloud) -> None:
    cloud.refuse("us-west4-a", CAPACITY)
    queue(cloud)
    failed = ask(cloud, "GET", f"{HERE}/queuedResources/q")["state"]
    assert (failed["state"], failed["failedData"]["error"]["message"]) == ("FAILED", CAPACITY)
    cloud.refuse("us-west4-a", CAPACITY)
    assert ask(cloud, "POST", f"{HERE}/nodes", NODE, nodeId="m")["error"]["message"] == CAPACITY
    created = ask(cloud, "POST", f"{HERE}/nodes", NODE, nodeId="m")
    assert ask(cloud, "GET", created["name"])["done"]


def test_guest_attributes_of_all_workers_or_of_one(cloud: Cloud) -> None:
    ask(cloud, "POST", f"{HERE}/nodes", NODE, nodeId="m")
    path = f"{HERE}/nodes/m:getGuestAttributes"
    assert len(ask(cloud, "POST", path)["guestAttributes"]) == 4
    (one,) = ask(cloud, "POST", path, {"workerIds": ["3"]})["guestAttributes"]
    assert one["queryValue"]["items"][0]["value"].endswith(".3")


def test_a_zone_may_not_offer_a_kind_of_pod(cloud: Cloud) -> None:
    path = f"/v1/{HERE}/acceleratorTypes/v5litepod-16"
    assert answer(cloud, "user:key", "GET", path, {}, {})["type"] == "v5litepod-16"
    cloud.not_offered.add(("us-west4-a", "v5litepod-16"))
    with pytest.raises(ApiError) as error:
        answer(cloud, "user:key", "GET", path, {}, {})
    assert error.value.code == NOT_FOUND


def test_what_is_unknown_is_not_found(cloud: Cloud) -> None:
    for path in (f"{HERE}/nodes/n", f"{HERE}/nowhere"):
        with pytest.raises(ApiError) as error:
            ask(cloud, "GET", path)
        assert error.value.code == NOT_FOUND


@pytest.mark.parametrize(
    ("accelerator", "workers"),
    [("v5litepod-4", 1), ("v5litepod-8", 1), ("v5litepod-16", 4), ("v5litepod-64", 16), ("v6e-16", 4), ("v4-16", 2)],
)
def test_virtual_machines_of_a_slice(accelerator: str, workers: int) -> None:
    assert workers_of({"acceleratorType": accelerator}) == workers


def test_a_metadata_server_tells_a_worker_who_it_is() -> None:
    server = MetadataServer(["127.0.0.1", "127.0.0.2"], 1)
    try:
        assert read(server, "instance/attributes/agent-worker-number") == "1"
        endpoints = read(server, "instance/attributes/worker-network-endpoints")
        assert endpoints == "unknown:unknown:127.0.0.1,unknown:unknown:127.0.0.2"
        assert "access_token" in json.loads(read(server, "instance/service-accounts/default/token"))
        assert read(server, "instance/preempted") == "FALSE"
        server.preempted.set()
        assert read(server, "instance/preempted?wait_for_change=true") == "TRUE"
        with pytest.raises(urllib.error.HTTPError):
            read(server, "instance/attributes/agent-worker-number", flavor="")
    finally:
        server.close()


def read(server: MetadataServer, name: str, flavor: str = "Google") -> str:
    url = f"http://{server.address}/computeMetadata/v1/{name}"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(urllib.request.Request(url, headers={"Metadata-Flavor": flavor})) as said:
        return said.read().decode()
