"""HTTP interface of the simulated cloud: the paths that `gcloud compute tpus` and its ssh command request."""

import json
import re
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tools.fakepod import cloud as codes
from tools.fakepod.cloud import NOT_FOUND, ApiError, Cloud, Dropped

# https://cloud.google.com/apis/design/errors#handling_errors
STATUS = {
    codes.INVALID_ARGUMENT: (400, "INVALID_ARGUMENT"),
    codes.NOT_FOUND: (404, "NOT_FOUND"),
    codes.ALREADY_EXISTS: (409, "ALREADY_EXISTS"),
    codes.PERMISSION_DENIED: (403, "PERMISSION_DENIED"),
    codes.RESOURCE_EXHAUSTED: (429, "RESOURCE_EXHAUSTED"),
    codes.FAILED_PRECONDITION: (400, "FAILED_PRECONDITION"),
    codes.INTERNAL: (500, "INTERNAL"),
    codes.UNAVAILABLE: (503, "UNAVAILABLE"),
    codes.UNAUTHENTICATED: (401, "UNAUTHENTICATED"),
}

Answer = dict[str, Any]


def api_handler(cloud: Cloud, ssh_keys: str, log: Path) -> type[BaseHTTPRequestHandler]:
    """Returns a handler class for http.server that logs every request in `log`.

    Args:
        ssh_keys: value of the project's metadata item `ssh-keys`, `USER:KEY`.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._serve("GET")

        def do_POST(self) -> None:
            self._serve("POST")

        def do_PATCH(self) -> None:
            self._serve("PATCH")

        def do_DELETE(self) -> None:
            self._serve("DELETE")

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def _serve(self, method: str) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            with log.open("ab") as file:
                file.write(f"{method} {self.path} ".encode() + body + b"\n")
            status = 200
            try:
                url = urlsplit(self.path)
                query = {name: values[0] for name, values in parse_qs(url.query).items()}
                cloud.check_available(method)
                content = answer(cloud, ssh_keys, method, url.path, query, json.loads(body or b"{}"))
            except Dropped:
                self.close_connection = True
                return
            except ApiError as error:
                status, content = error_response(error)
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    return Handler


def error_response(error: ApiError) -> tuple[int, Answer]:
    """Returns the status and the body of a failed request's response."""
    status, name = STATUS[error.code]
    return status, {"error": {"code": status, "message": str(error), "status": name}}


def answer(cloud: Cloud, ssh_keys: str, method: str, path: str, query: dict[str, str], body: Answer) -> Answer:
    """Returns the body of the response. Raises ApiError, of code NOT_FOUND where no route has the path."""
    location = r"(projects/[^/]+/locations/[^/]+)"
    routes: list[tuple[str, str, Callable[..., Answer]]] = [
        ("GET", rf"/v2/({location}/nodes/[^/:]+)", lambda name, _: cloud.get(cloud.nodes, name)),
        ("GET", rf"/v2/{location}/nodes", lambda parent: {"nodes": cloud.list(cloud.nodes, parent)}),
        ("POST", rf"/v2/{location}/nodes", lambda parent: cloud.create_node(parent, query["nodeId"], body)),
        ("DELETE", rf"/v2/({location}/nodes/[^/:]+)", lambda name, _: cloud.delete_node(name)),
        ("PATCH", rf"/v2/({location}/nodes/[^/:]+)", lambda name, _: cloud.update_node(name, body)),
        (
            "POST",
            rf"/v2/({location}/nodes/[^/:]+):getGuestAttributes",
            lambda name, _: cloud.guest_attributes(name, (body.get("workerIds") or [""])[0]),
        ),
        ("GET", rf"/v2/({location}/operations/[^/]+)", lambda name, _: cloud.operation(name)),
        ("GET", rf"/v2/({location}/queuedResources/[^/]+)", lambda name, _: cloud.get(cloud.queued, name)),
        (
            "GET",
            rf"/v2/{location}/queuedResources",
            lambda parent: {"queuedResources": cloud.list(cloud.queued, parent)},
        ),
        (
            "POST",
            rf"/v2/{location}/queuedResources",
            lambda parent: cloud.create_queued(parent, query["queuedResourceId"], body),
        ),
        (
            "DELETE",
            rf"/v2/({location}/queuedResources/[^/]+)",
            lambda name, _: cloud.delete_queued(name, query.get("force", "").lower() == "true"),
        ),
        ("GET", rf"/v1/({location}/acceleratorTypes/[^/]+)", lambda name, _: cloud.accelerator_type(name)),
        ("GET", r"/compute/v1/projects/([^/]+)", lambda project: compute_project(project, ssh_keys)),
    ]
    for verb, pattern, serve in routes:
        match = re.fullmatch(pattern, path)
        if verb == method and match:
            return serve(*match.groups())
    raise ApiError(NOT_FOUND, f"the simulated cloud has no {method} {path}")


def compute_project(project: str, ssh_keys: str) -> Answer:
    """Returns the Compute Engine resource of the project; its metadata holds the keys that may log in."""
    return {
        "kind": "compute#project",
        "name": project,
        "commonInstanceMetadata": {"items": [{"key": "ssh-keys", "value": ssh_keys}]},
    }
