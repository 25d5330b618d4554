"""Contents of Cloud Storage objects over HTTP, as views of memory in and into memory out.

google-cloud-storage joins what it sends and reads what it gets in pieces of 8 KiB: three times the work of the sockets.
Sessions are its own, so that credentials and connections are its business; nothing is tried again here.
"""

import base64
import io
import json
import re
import uuid
from collections.abc import Iterator, Sequence
from typing import Any, cast
from urllib.parse import quote

import google_crc32c
import requests
from google.api_core import exceptions as api

PIECE_BYTES = 1 << 20
Timeout = tuple[float, float]


def send_object(
    session: requests.Session,
    endpoint: str,
    bucket: str,
    metadata: dict[str, str],
    parts: Sequence[bytes | memoryview],
    if_generation_match: int | None,
    timeout_s: Timeout,
) -> dict[str, Any]:
    """Upload the joined parts in one request (https://cloud.google.com/storage/docs/uploading-objects#rest-upload).

    `metadata` has the object's `name`, and the `crc32c` without which the server does not check what arrives. Returns
    the object as the server describes it. Raises GoogleAPICallError, or what requests raises.
    """
    boundary = uuid.uuid4().hex
    head = (
        f"--{boundary}\r\ncontent-type: application/json; charset=UTF-8\r\n\r\n{json.dumps(metadata)}\r\n"
        f"--{boundary}\r\ncontent-type: application/octet-stream\r\n\r\n"
    )
    response = session.post(
        f"{endpoint}/upload/storage/v1/b/{bucket}/o",
        params={"uploadType": "multipart", "ifGenerationMatch": if_generation_match},
        data=cast(Any, Body([head.encode(), *parts, f"\r\n--{boundary}--".encode()])),  # the stubs know no such body
        headers={"content-type": f"multipart/related; boundary={boundary}"},
        timeout=timeout_s,
    )
    if not response.ok:
        raise api.from_http_response(response)
    return response.json()


def receive_object(
    session: requests.Session, endpoint: str, bucket: str, name: str, start: int, size: int | None, timeout_s: Timeout
) -> Iterator[bytes]:
    """The object's bytes from `start` on, `size` of them or all, in pieces; fewer where the object ends.

    Raises GoogleAPICallError (RequestRangeNotSatisfiable where it ends before `start`), or what requests and urllib3
    raise, also where the connection ends too early; ConnectionError where a whole object is not what was stored.
    """
    whole = start == 0 and size is None
    last = "" if size is None else start + size - 1
    with session.get(
        f"{endpoint}/download/storage/v1/b/{bucket}/o/{quote(name, safe='')}",
        params={"alt": "media"},
        headers={"accept-encoding": "identity"} | ({} if whole else {"range": f"bytes={start}-{last}"}),
        timeout=timeout_s,
        stream=True,
    ) as response:
        if not response.ok:
            raise api.from_http_response(response)
        if response.status_code != (200 if whole else 206):
            raise ConnectionError(f"{name}: {response.status_code} for bytes {start}-{last}")
        crc = 0
        for piece in response.raw.stream(PIECE_BYTES, decode_content=False):
            crc = google_crc32c.extend(crc, piece) if whole else 0
            yield piece
        expected = re.search(r"crc32c=([^,\s]+)", response.headers.get("x-goog-hash", ""))
        if whole and expected and expected[1] != base64.b64encode(crc.to_bytes(4, "big")).decode():
            raise ConnectionError(f"{name}: arrived damaged")


class Body:
    """What requests sends one after the other, unjoined, and again from the beginning if it has to."""

    def __init__(self, parts: Sequence[bytes | memoryview]) -> None:
        self._parts = [memoryview(part).cast("B") for part in parts if memoryview(part).nbytes]

    def __iter__(self) -> Iterator[memoryview]:
        return iter(self._parts)

    def __len__(self) -> int:
        return sum(map(len, self._parts))


class PartStream(io.RawIOBase):
    """The joined parts as a seekable file, so that no second copy of a whole batch is ever made."""

    def __init__(self, parts: Sequence[bytes | memoryview]) -> None:
        self._parts = [memoryview(part).cast("B") for part in parts if memoryview(part).nbytes]
        self._position = 0

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: sum(map(len, self._parts))}[whence]
        self._position = base + offset
        return self._position

    def read(self, size: int = -1, /) -> bytes | memoryview:  # type: ignore[override]
        pieces, skip, wanted = [], self._position, size if size >= 0 else sum(map(len, self._parts))
        for part in self._parts:
            if piece := part[skip : skip + wanted] if skip < len(part) else None:
                pieces.append(piece)
                wanted -= len(piece)
            skip = max(skip - len(part), 0)
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)  # what lies in one part is sent from where it is
        self._position += len(data)
        return data
