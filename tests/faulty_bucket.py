"""A proxy in front of the bucket emulator, with a list of network faults to apply to the next requests.

A fault is a status to answer with; a status with a message; or one of
`lost answer` (the server acts, but its answer is lost), `reset` (the connection breaks before anything is done),
`cut upload` (it breaks halfway through the body), `cut` (halfway through the answer), `stall` (silence),
`flip upload`, `flip` (a byte of the content changes on its way), `none`.
"""

import gc
import http.client
import json
import os
import re
import socket
import struct
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from bucket_server import BucketServer
from sample_runs import folders

Fault = str | int | tuple[int, str]
STALL_S = 3.0


class Proxy(BucketServer):
    """A server that applies `faults` to the next requests for objects, and `token_faults` to those for tokens.

    Every request takes `delay_s`. Where `token` is set, requests without it are answered with 401. `downloaded` has the
    names of the objects that were read, `composed` of those that each compose request joined.
    """

    def __init__(self, upstream: str) -> None:
        super().__init__(_Forward)
        self.upstream = upstream.removeprefix("http://")
        self.faults: list[Fault] = []
        self.token_faults: list[int] = []
        self.token: str | None = None
        self.delay_s = 0.0
        self.requests = 0
        self.downloaded: list[str] = []
        self.composed: list[list[str]] = []
        self.composing = threading.Lock()


class _Forward(BaseHTTPRequestHandler):
    server: Proxy
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and content are two writes: the second would wait for an acknowledgement

    def _forward(self) -> None:
        if self.path == "/token":
            self._give_token()
            return
        fault = self._next_fault()
        length = int(self.headers.get("Content-Length") or 0)
        if fault in ("reset", "cut upload"):
            self.rfile.read(length // 2 if fault == "cut upload" else 0)
            self._reset()
            return
        body = self.rfile.read(length)
        time.sleep(self.server.delay_s)
        if fault == "stall":
            time.sleep(STALL_S)
            self._reset()
        elif isinstance(fault, int):
            self._answer(fault, [], b"{}")
        elif isinstance(fault, tuple):
            self._answer(fault[0], [], json.dumps({"error": {"message": fault[1]}}).encode())
        else:
            if "/compose?" in self.path:
                status, headers, content = self._composed(body)
            else:
                status, headers, content = self._ask(_flipped(body) if fault == "flip upload" else body)
                if self.path.startswith("/download/"):
                    self.server.downloaded.append(unquote(self.path.rpartition("/")[2].partition("?")[0]))
            self._pass_on(fault, status, headers, content)

    do_GET = do_POST = do_PUT = do_DELETE = _forward

    def _next_fault(self) -> Fault:
        self.server.requests += 1
        if self.server.token and self.headers.get("Authorization") != f"Bearer {self.server.token}":
            return 401
        # The library also asks for the bucket's own metadata, in the background; faults are for objects.
        of_object = not re.search(r"/b/[^/?]+(\?|$)", self.path)
        return self.server.faults.pop(0) if of_object and self.server.faults else "none"

    def _composed(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        """Returns the emulator's answer as Cloud Storage would give it: composing is create-only where that is asked
        for, needs existing objects, and a composite object has no MD5.
        """
        target, query = re.fullmatch(r"(.*)/compose\?(.*)", self.path).groups()  # type: ignore[union-attr]
        with self.server.composing:
            if "ifGenerationMatch=0" in query and self._ask(b"", "GET", target)[0] == 200:
                return 412, [], b"{}"
            base = target.rpartition("/")[0]
            names = [source["name"] for source in json.loads(body)["sourceObjects"]]
            if any(self._ask(b"", "GET", f"{base}/{quote(name, safe='')}")[0] != 200 for name in names):
                return 404, [], b"{}"
            status, headers, content = self._ask(body)
        self.server.composed.append(names)
        return status, headers, json.dumps({**json.loads(content), "md5Hash": None}).encode()

    def _ask(
        self, body: bytes, command: str | None = None, path: str | None = None
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        upstream = http.client.HTTPConnection(self.server.upstream)
        headers = {k: v for k, v in self.headers.items() if k != "Host" and (body or k.lower() != "content-length")}
        upstream.request(command or self.command, path or self.path, body, headers)
        answer = upstream.getresponse()
        own, upstream_address = self.server.url.removeprefix("http://"), self.server.upstream
        content = answer.read().replace(upstream_address.encode(), own.encode())
        upstream.close()
        return answer.status, [(k, v.replace(upstream_address, own)) for k, v in answer.getheaders()], content

    def _pass_on(self, fault: Fault, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
        if fault == "lost answer":
            self.close_connection = True
        elif fault == "cut":
            self._answer(status, headers, content, sent=len(content) // 2)
            self._reset()
        else:
            self._answer(status, headers, _flipped(content) if fault == "flip" else content)

    def _give_token(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.server.token_faults:
            self._answer(self.server.token_faults.pop(0), [], b"{}")
            return
        token = {"access_token": self.server.token, "expires_in": 3600, "token_type": "Bearer"}
        self._answer(200, [("Content-Type", "application/json")], json.dumps(token).encode())

    def _reset(self) -> None:
        self.close_connection = True
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes, sent: int | None = None) -> None:
        self.send_response(status)
        for key, value in headers:
            if key.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[:sent])

    def log_message(self, *_: object) -> None:
        pass


def _flipped(data: bytes) -> bytes:
    at = len(data) // 2
    return data[:at] + bytes(byte ^ 1 for byte in data[at : at + 1]) + data[at + 1 :]


@contextmanager
def faulty_bucket(tmp_path: Path, require: Callable[[bool, str], None], setenv: Any) -> Iterator[Proxy]:
    """Starts an emulator behind a proxy; every folder of BUCKET opened meanwhile talks to the proxy."""
    with folders("bucket", tmp_path, require):
        server = Proxy(os.environ["STORAGE_EMULATOR_HOST"])
        with server.serving(setenv):
            yield server
    # The library leaves the connection of a failed download to the garbage collector, which warns whoever is on.
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):
        gc.collect()
