"""A run folder in Cloud Storage: the only module that imports google.cloud.

Set STORAGE_EMULATOR_HOST to talk to an emulator; otherwise application default credentials are used.
"""

import contextlib
import os
import re
import time
import uuid
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

from google.api_core import exceptions as api
from google.cloud import storage
from requests.adapters import HTTPAdapter

from pod_job.errors import JobError
from pod_job.storage.folder import NameTaken, not_as_stored
from pod_job.storage.gcs_compose import compose_in_tree
from pod_job.storage.gcs_errors import reason_of, retry
from pod_job.storage.gcs_media import PartStream, receive_object, send_object
from pod_job.storage.local import Part, Stored, checksum, joined

T = TypeVar("T")

RETRY_DEADLINE_S = 300.0
"""How long one request (for a large upload: one chunk) is tried again before the job gives up."""
CHECK_DEADLINE_S = 20.0
"""The same for the first contact, where somebody is watching."""
REQUEST_TIMEOUT_S = (10.0, 120.0)
"""To connect, and between two packets of an answer."""
ONE_REQUEST_BYTES = 128 << 20
"""A larger upload is a session of chunks, so that less than all is sent again when the connection is lost."""
UPLOAD_CHUNK_BYTES = 32 << 20
"""Each upload in flight holds at most one (the default: 100 MiB)."""
CONNECTIONS = 64
JOINING = "joining/"
"""Where objects lie while they become one; what a killed writer leaves there is swept."""
UPLOAD_ATTEMPTS = 3
"""Of uploads that arrive damaged, or whose session the server forgets."""


class BucketFolder:
    """`gs://bucket/prefix` as a Folder. Safe to share between threads, to pickle, and to carry over a fork."""

    def __init__(self, url: str, field: str = "storage.run_dir") -> None:
        match = re.fullmatch(r"gs://([a-z0-9][a-z0-9._-]+[a-z0-9])(?:/(.*?))?/*", url)
        if not match:
            raise JobError(f"{field}={url}: must be gs://bucket/prefix")
        self.bucket_name, prefix = match[1], match[2]
        self.url = url.rstrip("/")
        self.field = field
        self._prefix = f"{prefix}/" if prefix else ""
        self._client_of: tuple[int, storage.Client] | None = None

    def __reduce__(self) -> tuple:
        return BucketFolder, (self.url, self.field)

    def create(self, name: str, parts: Sequence[Part]) -> Stored:
        stored = checksum(parts)
        with self._explained():
            try:
                self._upload(name, parts, stored, if_generation_match=0)
            except api.PreconditionFailed:
                # Somebody was first. It may have been us: a lost acknowledgement makes the library send it again.
                there = self.stat(name)
                if there is None:
                    raise JobError(f"{self.url}/{name} was removed while it was being written") from None
                if there != stored:
                    raise NameTaken(name, there) from None
        return stored

    def join(self, name: str, head: bytes, sources: Sequence[tuple[str, Stored]]) -> Stored:
        whole, there = joined([checksum([head]), *(stored for _, stored in sources)]), self.stat(name)
        if ours := (there is None):
            there = self._join(name, head, [source for source, _ in sources])
        if there == whole:
            return whole
        bad = next((source for source, stored in sources if self.stat(source) != stored), None)
        if ours:
            self.remove(name)
        if bad is not None:
            raise not_as_stored(self.url, bad)
        raise NameTaken(name, there)

    def replace(self, name: str, data: Part) -> Stored:
        stored = checksum([data])
        with self._explained():
            self._upload(name, [data], stored)
        return stored

    def read(self, name: str, start: int = 0, size: int | None = None) -> bytes:
        return b"" if size == 0 else self._received(name, start, size, lambda pieces: b"".join(pieces), b"")

    def read_into(self, name: str, start: int, out: memoryview) -> int:
        def fill(pieces: Iterable[bytes]) -> int:
            got = 0
            for piece in pieces:
                out[got : got + len(piece)] = piece
                got += len(piece)
            return got

        return self._received(name, start, len(out), fill, 0) if len(out) else 0

    def stat(self, name: str) -> Stored | None:
        with self._explained():
            blob = self._bucket().get_blob(self._prefix + name, **_patience())
        return None if blob is None else _stored(blob)

    def names(self, prefix: str) -> list[str]:
        with self._explained():
            blobs = self._client().list_blobs(
                self.bucket_name,
                prefix=self._prefix + prefix,
                fields="items(name),nextPageToken",
                **_patience(),
            )
            return sorted(blob.name.removeprefix(self._prefix) for blob in blobs)

    def remove(self, name: str) -> None:
        with self._explained(), contextlib.suppress(api.NotFound):
            self._blob(name).delete(**_patience())

    def sweep(self, idle_s: float) -> None:
        # An upload that was not finished has no object, and Cloud Storage forgets it after a week.
        with self._explained():
            for blob in self._client().list_blobs(self.bucket_name, prefix=self._prefix + JOINING, **_patience()):
                if time.time() - blob.updated.timestamp() > idle_s:
                    self.remove(blob.name.removeprefix(self._prefix))

    def local_path(self, name: str) -> Path | None:
        return None

    def check_writable(self) -> None:
        probe = f"probe-{uuid.uuid4().hex}"
        with self._explained(CHECK_DEADLINE_S):
            self._upload(probe, [b"probe"], checksum([b"probe"]), deadline_s=CHECK_DEADLINE_S, if_generation_match=0)
            self._blob(probe).delete(**_patience(CHECK_DEADLINE_S))

    def _join(self, name: str, head: bytes, sources: Sequence[str]) -> Stored:
        """What is under the name now: these objects one after the other, or what somebody else has put there."""
        scratch = f"{JOINING}{uuid.uuid4().hex}/"
        self.create(f"{scratch}head", [head])
        with self._explained():
            last, made = compose_in_tree(self._compose, [f"{scratch}head", *sources], scratch)
            with contextlib.suppress(api.PreconditionFailed):
                self._compose(name, last, if_generation_match=0)
        for each in (f"{scratch}head", *made):
            self.remove(each)
        if there := self.stat(name):
            return there
        raise FileNotFoundError(f"{self.url}/{name}")

    def _compose(self, name: str, sources: Sequence[str], if_generation_match: int | None = None) -> None:
        try:
            blob = self._blob(name)
            blob.content_type = "application/octet-stream"
            blob.compose(
                [self._blob(source) for source in sources], if_generation_match=if_generation_match, **_patience()
            )
        except api.NotFound:
            raise FileNotFoundError(f"{self.url}/{sources[0]} or one of the {len(sources) - 1} after it") from None

    def _received(self, name: str, start: int, size: int | None, take: Callable[[Iterable[bytes]], T], nothing: T) -> T:
        """What `take` makes of the bytes; it is called anew where they have to be read again."""

        def attempt() -> T:
            client = self._client()
            place = (client._http, client.api_endpoint, self.bucket_name, self._prefix + name)
            return take(receive_object(*place, start, size, REQUEST_TIMEOUT_S))

        with self._explained():
            try:
                return retry(RETRY_DEADLINE_S)(attempt)()
            except api.NotFound:
                raise FileNotFoundError(f"{self.url}/{name}") from None
            except api.RequestRangeNotSatisfiable:
                return nothing

    def _upload(
        self,
        name: str,
        parts: Sequence[Part],
        stored: Stored,
        deadline_s: float | None = None,
        if_generation_match: int | None = None,
    ) -> None:
        send = self._send if stored.size <= ONE_REQUEST_BYTES else self._send_in_chunks
        for attempt in range(1, UPLOAD_ATTEMPTS + 1):
            try:
                there = send(name, parts, stored, deadline_s, if_generation_match)
            except api.GoogleAPICallError as error:
                # 404, 410: the server forgot the session; only a new one helps. 400: what arrived was damaged.
                passing = error.code in (404, 410) or (error.code == 400 and "crc32c" in str(error).lower())
                if not passing or attempt == UPLOAD_ATTEMPTS:
                    raise
                continue
            if Stored(int(there["size"]), there["crc32c"]) == stored:
                return
            with contextlib.suppress(api.NotFound, api.PreconditionFailed):  # gone already, or replaced
                self._blob(name).delete(if_generation_match=int(there["generation"]), **_patience(deadline_s))
        raise JobError(f"{self.url}/{name}: arrived damaged {UPLOAD_ATTEMPTS} times and was removed; check the network")

    def _send(
        self,
        name: str,
        parts: Sequence[Part],
        stored: Stored,
        deadline_s: float | None,
        if_generation_match: int | None,
    ) -> dict[str, Any]:
        client = self._client()
        metadata = {"name": self._prefix + name, "crc32c": stored.crc32c}  # the server refuses what does not match
        place = (client._http, client.api_endpoint, self.bucket_name, metadata)
        return retry(deadline_s or RETRY_DEADLINE_S)(send_object)(*place, parts, if_generation_match, REQUEST_TIMEOUT_S)

    def _send_in_chunks(
        self,
        name: str,
        parts: Sequence[Part],
        stored: Stored,
        deadline_s: float | None,
        if_generation_match: int | None,
    ) -> dict[str, Any]:
        blob = self._blob(name)
        blob.crc32c = stored.crc32c
        blob.chunk_size = UPLOAD_CHUNK_BYTES
        blob.upload_from_file(
            PartStream(parts),
            size=stored.size,
            if_generation_match=if_generation_match,
            checksum=cast(str, None),  # ours is sent along already: one pass over the data is enough
            **_patience(deadline_s),
        )
        return {"size": blob.size, "crc32c": blob.crc32c, "generation": blob.generation}

    def _client(self) -> storage.Client:
        # A connection must not be shared with a forked child (torch's DataLoader workers), so each process has its own.
        if self._client_of is None or self._client_of[0] != os.getpid():
            client = storage.Client(project=None)
            # The default pool keeps 10 connections and drops the rest after each use.
            client._http.mount("https://", HTTPAdapter(pool_maxsize=CONNECTIONS))
            client._http.mount("http://", HTTPAdapter(pool_maxsize=CONNECTIONS))
            weakref.finalize(self, client.close)
            self._client_of = (os.getpid(), client)
        return self._client_of[1]

    def _bucket(self) -> storage.Bucket:
        return self._client().bucket(self.bucket_name)

    def _blob(self, name: str) -> storage.Blob:
        return self._bucket().blob(self._prefix + name)

    @contextmanager
    def _explained(self, deadline_s: float | None = None) -> Iterator[None]:
        """Turn what a person has to fix into one line; other errors are bugs and keep their traceback."""
        try:
            yield
        except Exception as error:
            cause = error.cause if isinstance(error, api.RetryError) and error.cause else error
            if reason := reason_of(cause, self.bucket_name, deadline_s or RETRY_DEADLINE_S):
                raise JobError(f"{self.field}={self.url}: {reason}") from error
            raise


def _stored(blob: storage.Blob) -> Stored:
    return Stored(int(blob.size or 0), str(blob.crc32c))


def _patience(deadline_s: float | None = None) -> dict[str, Any]:
    """The keywords every request of the library takes."""
    return {"timeout": REQUEST_TIMEOUT_S, "retry": retry(deadline_s or RETRY_DEADLINE_S)}
