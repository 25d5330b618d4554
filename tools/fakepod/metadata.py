"""Metadata server of a worker: its number in the slice, an access token, and the notice of its preemption.

The attributes are those of a Cloud TPU VM, https://cloud.google.com/compute/docs/metadata/overview.
"""

import contextlib
import json
import threading
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "simulated-token-of-a-host"


class MetadataServer:
    """Metadata server that runs from construction until `close`; `address` is the host:port for GCE_METADATA_IP."""

    def __init__(self, addresses: Sequence[str], worker: int) -> None:
        self.preempted = threading.Event()
        self.ahead_s = 0.0  # how far this server's clock is ahead of the machine's
        endpoints = ",".join(f"unknown:unknown:{address}" for address in addresses)
        values = {
            "instance/attributes/agent-worker-number": str(worker),
            "instance/attributes/worker-network-endpoints": endpoints,
            "instance/attributes/tpu-env": f"WORKER_ID: '{worker}'",
            "instance/service-accounts/default/token": json.dumps({"access_token": TOKEN, "token_type": "Bearer"}),
            "instance/maintenance-event": "NONE",
        }
        self.server = ThreadingHTTPServer((addresses[worker], 0), handler(self, values))
        self.address = f"{addresses[worker]}:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def handler(server: MetadataServer, values: dict[str, str]) -> type[BaseHTTPRequestHandler]:
    """Returns a handler class for http.server that serves `values` and the notice of preemption."""
    preempted = server.preempted

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.removeprefix("/computeMetadata/v1/").partition("?")[0]
            value = values.get(name)
            if name == "instance/preempted":
                if "wait_for_change=true" in self.path:
                    preempted.wait(60)
                value = "TRUE" if preempted.is_set() else "FALSE"
            known = value is not None and self.headers.get("Metadata-Flavor") == "Google"
            data = (value or "").encode() if known else b""
            self.send_response(200 if known else 404)
            self.send_header("Metadata-Flavor", "Google")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            with contextlib.suppress(ConnectionError):  # the client ended while it waited for a change
                self.wfile.write(data)

        def date_time_string(self, timestamp: float | None = None) -> str:
            return super().date_time_string(time.time() + server.ahead_s)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler
