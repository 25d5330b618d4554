"""A strict server of Cloud Storage's JSON API in memory, written from its documentation and without code of ours.

Where the emulator is lenient it is not: create-only at every size, generations, checksums of uploads, sessions of
chunks of 256 KiB that are kept in part, 32 objects in a compose request. `faults` are applied to the next requests:
a status to answer with, without acting; or
`reset` (the connection breaks before anything is done), `lost` (the server acts, the answer is lost), `cut` (it
breaks halfway), `garbage` (acts, and answers with a page of HTML), `forget` (the session of the upload is gone),
`keep N` (only N bytes of a chunk are kept), `hold` (the request acts only when `release` is called), and of downloads
`shift` (another range), `flip` (a byte changes), `short`, `long` (another number of bytes), `unranged` (all of it).
"""

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import google_crc32c
from bucket_server import BucketServer

BUCKET = "strict-bucket"
QUANTUM = 256 << 10
PAGE_OBJECTS = 3
Answer = tuple[int, dict[str, str], bytes]


@dataclass
class Object:
    """Content and generation of an object."""

    content: bytes
    generation: int
    updated: float = field(default_factory=time.time)

    @property
    def crc32c(self) -> str:
        return base64.b64encode(google_crc32c.Checksum(self.content).digest()).decode()

    def described(self, name: str) -> dict[str, Any]:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(self.updated))
        listed = {"name": name, "crc32c": self.crc32c, "generation": str(self.generation), "updated": moment}
        return listed | ({"size": str(len(self.content))} if self.content else {})  # zero may be left out


@dataclass
class Session:
    """An upload in chunks, and the object that it became."""

    name: str
    crc32c: str
    expected: str | None
    kept: bytes = b""
    done: Answer | None = None


class StrictBucket(BucketServer):
    """The server; `requests` has method and path of each request so far."""

    def __init__(self) -> None:
        super().__init__(_Handler)
        self.lock = threading.RLock()
        self.generation = 1000
        self.reset()

    def reset(self) -> None:
        """Forgets objects, sessions and faults."""
        self.objects: dict[str, Object] = {}
        self.sessions: dict[str, Session] = {}
        self.faults: list[int | str] = []
        self.requests: list[tuple[str, str]] = []
        self.held: list[Callable[[], Answer]] = []

    def release(self) -> list[int]:
        """Lets the requests act that were held on their way; returns their statuses."""
        held, self.held = self.held, []
        return [act()[0] for act in held]

    def store(self, name: str, content: bytes, crc32c: str | None, expected: str | None) -> Answer:
        """Makes the object, where its generation is the one expected and its content what was sent."""
        with self.lock:
            now = self.objects.get(name)
            if expected is not None and int(expected) != (now.generation if now else 0):
                return error(412, "At least one of the pre-conditions you specified did not hold.")
            self.generation += 1
            made = Object(content, self.generation)
            if crc32c is not None and crc32c != made.crc32c:
                return error(400, f'Provided CRC32C "{crc32c}" doesn\'t match calculated CRC32C "{made.crc32c}".')
            self.objects[name] = made
            return as_json(made.described(name))


def error(status: int, message: str = "") -> Answer:
    return status, {}, json.dumps({"error": {"code": status, "message": message}}).encode()


def as_json(content: Any) -> Answer:
    return 200, {"content-type": "application/json"}, json.dumps(content).encode()


class _Handler(BaseHTTPRequestHandler):
    server: StrictBucket  # pyright: ignore[reportIncompatibleVariableOverride]
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        parts = urlsplit(self.path)
        if re.fullmatch(r"/storage/v1/b/[^/]+", parts.path):  # the library asks for it in the background
            self._send(as_json({"name": BUCKET}))
            return
        self.server.requests.append((self.command, self.path))
        fault = self.server.faults.pop(0) if self.server.faults else "none"
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}

        def act() -> Answer:
            with self.server.lock:
                return self._act(parts.path, query, body, fault)

        if fault == "reset":
            self.close_connection = True
        elif fault == "hold":
            self.server.held.append(act)
            self.close_connection = True
        elif isinstance(fault, int):
            self._send(error(fault, "injected"))
        else:
            self._send(act(), fault)

    do_GET = do_POST = do_PUT = do_DELETE = _serve

    def _act(self, path: str, query: dict[str, str], body: bytes, fault: int | str) -> Answer:
        expected = query.get("ifGenerationMatch")
        if path.startswith("/sessions/"):
            return self._chunk(path, body, fault)
        if path == f"/upload/storage/v1/b/{BUCKET}/o":
            return (
                self._begin(body, expected) if query["uploadType"] == "resumable" else self._multipart(body, expected)
            )
        if path == f"/storage/v1/b/{BUCKET}/o":
            return self._listing(query)
        match = re.fullmatch(rf"/(storage|download/storage)/v1/b/{BUCKET}/o/([^/]+)(/compose)?", path)
        if match is None:
            return error(404, "The specified bucket does not exist.")
        name = unquote(match[2])
        if match[3]:
            return self._compose(name, json.loads(body), expected)
        existing = self.server.objects.get(name)
        if existing is None:
            return error(404, "No such object")
        if self.command == "DELETE":
            if expected is not None and int(expected) != existing.generation:
                return error(412)
            del self.server.objects[name]
            return 204, {}, b""
        media = match[1] != "storage" or query.get("alt") == "media"
        return self._media(existing, fault) if media else as_json(existing.described(name))

    def _multipart(self, body: bytes, expected: str | None) -> Answer:
        boundary = self.headers["content-type"].partition("boundary=")[2].encode()
        _, metadata, content, end = body.split(b"--" + boundary)
        assert end == b"--"
        described = json.loads(metadata.partition(b"\r\n\r\n")[2])
        content = content.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n")
        return self.server.store(described["name"], content, described.get("crc32c"), expected)

    def _begin(self, body: bytes, expected: str | None) -> Answer:
        described = json.loads(body)
        path = f"/sessions/{len(self.server.sessions)}"
        self.server.sessions[path] = Session(described["name"], described.get("crc32c"), expected)
        return 200, {"location": self.server.url + path}, b""

    def _chunk(self, path: str, body: bytes, fault: int | str) -> Answer:
        session = self.server.sessions.get(path)
        if fault == "forget" and session is not None:
            session = self.server.sessions.pop(path) and None
        if session is None:
            return error(410, "The upload session is gone.")
        if session.done:
            return session.done
        match = re.fullmatch(r"bytes (?:(\d+)-(\d+)|\*)/(\d+)", self.headers["content-range"])
        assert match is not None
        total = int(match[3])
        if match[1] is not None:
            first, last = int(match[1]), int(match[2])
            if first != len(session.kept) or len(body) != last - first + 1:
                return error(400, "Invalid request: the chunk does not begin where the last one ended.")
            if last + 1 != total and len(body) % QUANTUM:
                return error(400, "Invalid request: the number of bytes is not a multiple of 262144.")
            most = int(str(fault).partition(" ")[2]) if str(fault).startswith("keep") else len(body)
            session.kept += body[:most]
        if len(session.kept) == total:
            session.done = self.server.store(session.name, session.kept, session.crc32c, session.expected)
            return session.done
        return 308, {"range": f"bytes=0-{len(session.kept) - 1}"} if session.kept else {}, b""

    def _listing(self, query: dict[str, str]) -> Answer:
        names = sorted(name for name in self.server.objects if name.startswith(query.get("prefix", "")))
        start = int(query.get("pageToken", 0))
        items = [self.server.objects[name].described(name) for name in names[start : start + PAGE_OBJECTS]]
        more = {"nextPageToken": str(start + PAGE_OBJECTS)} if start + PAGE_OBJECTS < len(names) else {}
        return as_json({"items": items, **more} if items else {})

    def _compose(self, name: str, request: dict[str, Any], expected: str | None) -> Answer:
        sources = [source["name"] for source in request["sourceObjects"]]
        if len(sources) > 32:
            return error(400, "The number of source components provided exceeds the maximum (32)")
        if not all(source in self.server.objects for source in sources):
            return error(404, "No such object")
        return self.server.store(name, b"".join(self.server.objects[s].content for s in sources), None, expected)

    def _media(self, existing: Object, fault: int | str) -> Answer:
        content, whole = existing.content, len(existing.content)
        md5 = base64.b64encode(hashlib.md5(content).digest()).decode()
        headers = {"x-goog-hash": f"crc32c={existing.crc32c},md5={md5}", "x-goog-generation": str(existing.generation)}
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range") or "")
        status, start, stop = 200, 0, whole
        if match and fault != "unranged":
            start, stop = int(match[1]), min(whole, int(match[2] or whole) + 1)
            if start >= whole:
                return 416, {"content-range": f"bytes */{whole}"}, b""
            if fault == "shift":
                start, stop = start - 1, stop - 1
            status, headers["content-range"] = 206, f"bytes {start}-{stop - 1}/{whole}"
        content = content[start:stop]
        if fault == "flip":
            content = content[:-1] + bytes([content[-1] ^ 1])
        return status, headers, {"short": content[:-1], "long": content + b"x"}.get(str(fault), content)

    def _send(self, answer: Answer, fault: int | str = "none") -> None:
        status, headers, content = answer
        if fault == "lost":
            self.close_connection = True
            return
        if fault == "garbage":
            headers, content = {"content-type": "text/html"}, b"<html>Please log in to the network</html>"
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        if fault == "cut":
            self.close_connection = True
            content = content[: len(content) // 2]
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def strict_bucket(setenv: Callable[[str, str], None]) -> Iterator[StrictBucket]:
    """Starts the server; every folder of BUCKET opened meanwhile talks to it."""
    server = StrictBucket()
    with server.serving(setenv):
        yield server
