"""Uploads and downloads of Cloud Storage objects over HTTP, without the copies that google-cloud-storage makes.

That library joins the parts of an upload and reads a download in pieces of 8 KiB: three times the CPU time of the
sockets. The sessions used here are the library's own, with its credentials and connections.
"""

import json
import re
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import quote

import msgspec
import requests
from google.api_core import exceptions as api

from pod_job.storage.checksums import Part, RunningChecksum, checksum

PIECE_BYTES = 1 << 20
EMPTY = checksum([])
Timeout = tuple[float, float]
"""Seconds to connect, and between two packets of an answer."""


class Uploaded(msgspec.Struct, frozen=True):
    """An object as the server describes it; a server may leave out what is zero."""

    size: int = 0
    crc32c: str = EMPTY.crc32c
    generation: int = 0


def uploaded_in(response: requests.Response) -> Uploaded:
    """Returns the object that an answer describes. ConnectionError where the answer is something else, or cut."""
    try:
        return msgspec.json.decode(response.content, type=Uploaded, strict=False)  # its numbers are strings
    except msgspec.DecodeError as error:
        raise ConnectionError(f"an answer that does not describe an object ({error})") from error


@dataclass(frozen=True)
class MediaClient:
    """Uploads to, downloads from and looks at the objects of one bucket; nothing is retried here.

    All raise GoogleAPICallError for an answer that is an error, and the errors of requests and urllib3.
    """

    session: requests.Session
    endpoint: str
    bucket: str
    timeout_s: Timeout

    @property
    def upload_url(self) -> str:
        return f"{self.endpoint}/upload/storage/v1/b/{self.bucket}/o"

    def send(self, name: str, crc32c: str, parts: Sequence[Part], if_generation_match: int) -> Uploaded:
        """Uploads the joined parts in one request (https://cloud.google.com/storage/docs/uploading-objects#rest-upload).

        The server refuses content that does not have this `crc32c`.
        """
        boundary = uuid.uuid4().hex
        metadata = json.dumps({"name": name, "crc32c": crc32c})
        head = (
            f"--{boundary}\r\ncontent-type: application/json; charset=UTF-8\r\n\r\n{metadata}\r\n"
            f"--{boundary}\r\ncontent-type: application/octet-stream\r\n\r\n"
        )
        body = Body([head.encode(), *parts, f"\r\n--{boundary}--".encode()])
        response = self.session.post(
            self.upload_url,
            params={"uploadType": "multipart", "ifGenerationMatch": if_generation_match},
            data=cast(Any, body),  # the stubs know no such body
            headers={"content-type": f"multipart/related; boundary={boundary}"},
            timeout=self.timeout_s,
        )
        if not response.ok:
            raise api.from_http_response(response)
        return uploaded_in(response)

    def describe(self, name: str) -> Uploaded | None:
        """Returns the object; None where nothing has the name."""
        url, fields = self._url("storage", name), {"fields": "size,crc32c,generation"}
        response = self.session.get(url, params=fields, timeout=self.timeout_s)
        if response.status_code == 404:
            return None
        if not response.ok:
            raise api.from_http_response(response)
        return uploaded_in(response)

    def delete(self, name: str, generation: int | None = None) -> None:
        """Removes the object, or this generation of it only. Raises NotFound where it does not exist."""
        params = {} if generation is None else {"ifGenerationMatch": generation}
        response = self.session.delete(self._url("storage", name), params=params, timeout=self.timeout_s)
        if not response.ok:
            raise api.from_http_response(response)

    def receive(self, name: str, start: int, size: int | None) -> Iterator[bytes]:
        """Yields the object's bytes from `start` on, `size` of them or all, in pieces; fewer where the object ends.

        Raises:
            RequestRangeNotSatisfiable: the object ends before `start`.
            ConnectionError: the answer is not the range asked for, or a whole object differs from its checksum. Cloud
                Storage has no checksum of a part: whoever reads one checks it.
        """
        last = "" if size is None else start + size - 1
        ranged = {} if start == 0 and size is None else {"range": f"bytes={start}-{last}"}
        with self.session.get(
            self._url("download/storage", name),
            params={"alt": "media"},
            headers={"accept-encoding": "identity"} | ranged,
            timeout=self.timeout_s,
            stream=True,
        ) as response:
            if not response.ok:
                raise api.from_http_response(response)
            promised = _promised(response, start, size) if ranged else None
            if response.status_code != (206 if ranged else 200) or (ranged and promised is None):
                shown = f"{response.status_code} {response.headers.get('content-range', '')}".rstrip()
                raise ConnectionError(f"{name}: {shown} for bytes {start}-{last}")
            expected = re.search(r"crc32c=([^,\s]+)", response.headers.get("x-goog-hash", ""))
            received, running = 0, RunningChecksum()
            for piece in response.raw.stream(PIECE_BYTES, decode_content=False):
                received += len(piece)
                if promised is not None and received > promised.size:
                    break
                if promised is None or promised.entire:
                    running.update(piece)
                yield piece
            if promised is not None and received != promised.size:
                raise ConnectionError(f"{name}: {received} bytes or more, of a range of {promised.size}")
            if (promised is None or promised.entire) and (expected is None or expected[1] != running.stored.crc32c):
                raise ConnectionError(f"{name}: {'arrived damaged' if expected else 'came without its checksum'}")

    def _url(self, service: str, name: str) -> str:
        return f"{self.endpoint}/{service}/v1/b/{self.bucket}/o/{quote(name, safe='')}"


@dataclass(frozen=True)
class _Range:
    """The bytes that an answer promises: how many, and whether they are all of the object."""

    size: int
    entire: bool


def _promised(response: requests.Response, start: int, size: int | None) -> _Range | None:
    """Returns the range that the answer holds; None where it is not the one asked for."""
    match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", response.headers.get("content-range", ""))
    if match is None:
        return None
    first, last, total = map(int, match.groups())
    stop = total if size is None else min(total, start + size)
    return _Range(stop - start, stop - start == total) if (first, last + 1) == (start, stop) else None


def scatter(pieces: Iterable[bytes], outs: Sequence[memoryview]) -> int:
    """Copies the pieces, one after the other, into `outs`, which must have room; returns how many bytes."""
    filled, rest = 0, [out for out in outs if len(out)]
    for piece in pieces:
        filled, view = filled + len(piece), memoryview(piece)
        while len(view):
            room = min(len(view), len(rest[0]))
            rest[0][:room] = view[:room]
            view, rest[0] = view[room:], rest[0][room:]
            if not len(rest[0]):
                rest.pop(0)
    return filled


class Body:
    """Body of a request that is sent part by part, unjoined, and can be sent again from the beginning."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = [memoryview(part).cast("B") for part in parts if memoryview(part).nbytes]

    def __iter__(self) -> Iterator[memoryview]:
        return iter(self._parts)

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def cut(self, start: int, size: int) -> "Body":
        """Returns the part of it from `start` on, uncopied, of at most `size` bytes."""
        cut: list[memoryview] = []
        for part in self._parts:
            piece = part[start : start + size]
            start, size = max(start - len(part), 0), size - len(piece)
            cut.append(piece)
        return Body(cut)
