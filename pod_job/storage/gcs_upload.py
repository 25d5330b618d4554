"""Uploads that end with the object stored as it was sent, or with one line: in one request, or in a session of chunks.

The library's own sessions end where an answer is lost, where a chunk is kept in part, or where the server forgets them.
The protocol is https://cloud.google.com/storage/docs/performing-resumable-uploads.
"""

import contextlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from google.api_core import exceptions as api

from pod_job.errors import JobError
from pod_job.storage.checksums import Part, Stored
from pod_job.storage.gcs_errors import retry
from pod_job.storage.gcs_media import Body, MediaClient, Uploaded, uploaded_in

ONE_REQUEST_BYTES = 128 << 20
"""A larger upload is a session of chunks, so that a lost connection costs one chunk."""
UPLOAD_CHUNK_BYTES = 32 << 20
"""Size of a chunk; all but the last must be a multiple of 256 KiB."""
UPLOAD_ATTEMPTS = 3
"""Attempts at an upload that arrives damaged."""
SESSIONS = 10
"""Sessions for one upload, where the server forgets them."""


@dataclass(frozen=True)
class Upload:
    """Content on its way to the object `name` of a bucket; it must have this generation then, 0 for none."""

    name: str
    parts: Sequence[Part]
    stored: Stored
    if_generation_match: int


def upload(media: MediaClient, content: Upload, deadline_s: float) -> None:
    """Stores the content.

    Args:
        deadline_s: how long one request, or one chunk, is retried.
    Raises:
        PreconditionFailed: the object has another generation; that may be of an earlier attempt of this upload.
        JobError: the content arrives damaged again and again, or the server forgets every session.
    """
    expected = content.if_generation_match
    for _ in range(UPLOAD_ATTEMPTS):
        try:
            uploaded = _send(media, content, expected, deadline_s)
        except api.BadRequest as error:  # the server saw that the content arrived damaged
            if "crc32c" in str(error).lower():
                continue
            raise
        if Stored(uploaded.size, uploaded.crc32c) == content.stored:
            return
        with contextlib.suppress(api.NotFound, api.PreconditionFailed):  # removed or replaced meanwhile
            retry(deadline_s)(media.delete)(content.name, uploaded.generation)
        expected = 0
    raise JobError(
        f"gs://{media.bucket}/{content.name}: arrived damaged {UPLOAD_ATTEMPTS} times and was removed; "
        "check the network"
    )


def _send(media: MediaClient, content: Upload, if_generation_match: int, deadline_s: float) -> Uploaded:
    if content.stored.size <= ONE_REQUEST_BYTES:
        send = retry(deadline_s)(media.send)
        return send(content.name, content.stored.crc32c, content.parts, if_generation_match)
    session = _Session(media, content, if_generation_match)
    while (uploaded := retry(deadline_s)(session.advance)()) is None:
        pass
    return uploaded


class _Session:
    """An upload in chunks. The server says how much of it is kept, and that is where the next chunk begins."""

    def __init__(self, media: MediaClient, content: Upload, if_generation_match: int) -> None:
        self._media, self._content, self._if_generation_match = media, content, if_generation_match
        self._body = Body(content.parts)
        self._url: str | None = None
        self._begun = 0
        self._kept = 0
        self._in_doubt = False

    def advance(self) -> Uploaded | None:
        """Sends one chunk; returns the object after the last one.

        After an error it may be called again: what the server has then is asked for first.

        Raises:
            ConnectionError: the server kept nothing of the chunk, or has forgotten the session.
            JobError: it has forgotten SESSIONS of them.
        """
        if self._url is None:
            self._url = self._begin()
            self._kept, self._in_doubt = 0, False
        if self._in_doubt:
            answer = self._put(self._url, b"")
            if isinstance(answer, Uploaded):
                return answer
            if answer < self._kept:
                self._url = None
                raise ConnectionError(f"of {self._kept} bytes that were kept {answer} are left")
            self._kept = answer
        self._in_doubt = True
        answer = self._put(self._url, self._body.cut(self._kept, UPLOAD_CHUNK_BYTES))
        if isinstance(answer, Uploaded):
            return answer
        if not self._kept < answer <= self._kept + UPLOAD_CHUNK_BYTES:
            raise ConnectionError(f"{answer} bytes are kept after a chunk from {self._kept} on")
        self._kept, self._in_doubt = answer, False
        return None

    def _begin(self) -> str:
        """Returns the URL of a new session."""
        if self._begun == SESSIONS:
            raise JobError(
                f"gs://{self._media.bucket}/{self._content.name}: the server forgot {SESSIONS} uploads of it; "
                "see https://status.cloud.google.com and start the job again"
            )
        self._begun += 1
        response = self._media.session.post(
            self._media.upload_url,
            params={"uploadType": "resumable", "ifGenerationMatch": self._if_generation_match},
            data=json.dumps({"name": self._content.name, "crc32c": self._content.stored.crc32c}),
            headers={
                "content-type": "application/json; charset=UTF-8",
                "x-upload-content-type": "application/octet-stream",
                "x-upload-content-length": str(len(self._body)),
            },
            timeout=self._media.timeout_s,
        )
        if not response.ok:
            raise api.from_http_response(response)
        if "location" not in response.headers:
            raise ConnectionError("an upload began without a location")
        return response.headers["location"]

    def _put(self, url: str, chunk: "Body | bytes") -> Uploaded | int:
        """Sends a chunk, or asks with an empty one; returns the object, or how many of its bytes the server has."""
        total, last = len(self._body), self._kept + len(chunk) - 1
        response = self._media.session.put(
            url,
            data=chunk,  # type: ignore[arg-type]  # the stubs know no such body
            headers={"content-range": f"bytes {self._kept}-{last}/{total}" if len(chunk) else f"bytes */{total}"},
            timeout=self._media.timeout_s,
            allow_redirects=False,
        )
        if response.status_code in (404, 410):
            self._url = None
            raise ConnectionError(f"the upload session was forgotten ({response.status_code})")
        if response.status_code == 308:
            kept = re.fullmatch(r"bytes=0-(\d+)", response.headers.get("range", ""))
            return int(kept[1]) + 1 if kept else 0
        if not response.ok:
            raise api.from_http_response(response)
        return uploaded_in(response)
