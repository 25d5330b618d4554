"""BucketFolder: a run folder in Cloud Storage. No other module imports google.cloud.

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from google.api_core import exceptions as api
from google.cloud import storage
from requests.adapters import HTTPAdapter

from pod_job.errors import JobError
from pod_job.storage.checksums import Part, Stored, checksum, joined
from pod_job.storage.folder import NameTaken, check_name, is_name, not_as_stored
from pod_job.storage.gcs_compose import compose_in_tree
from pod_job.storage.gcs_errors import reason_of, retry
from pod_job.storage.gcs_media import MediaClient, PartStream, Uploaded

T = TypeVar("T")

RETRY_DEADLINE_S = 300.0
"""How long one request (for a large upload: one chunk) is retried before the job gives up."""
CHECK_DEADLINE_S = 20.0
"""How long the first contact is retried, while the user waits for it."""
REQUEST_TIMEOUT_S = (10.0, 120.0)
"""To connect, and between two packets of an answer."""
ONE_REQUEST_BYTES = 128 << 20
"""A larger upload is a session of chunks, so that a lost connection costs one chunk."""
UPLOAD_CHUNK_BYTES = 32 << 20
"""Memory of an upload in chunks (the library's default is 100 MiB)."""
CONNECTIONS = 64
JOINING = "joining/"
"""Prefix of the objects that `join` makes on the way; those of a killed writer are swept."""
UPLOAD_ATTEMPTS = 3
"""Attempts at an upload that arrives damaged, or whose session the server forgets."""


@dataclass(frozen=True)
class Upload:
    """Content on its way to the bucket; `if_generation_match=0` makes it create-only.

    `deadline_s` is how long a request is retried; RETRY_DEADLINE_S where None.
    """

    name: str
    parts: Sequence[Part]
    stored: Stored
    if_generation_match: int | None = None
    deadline_s: float | None = None


class BucketFolder:
    """A Folder at `gs://bucket/prefix`: safe to share between threads, to pickle, and to carry over a fork.

    `field` is the setting that named this place, for errors.
    """

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
        with self._user_errors():
            try:
                self._upload(Upload(name, parts, stored, if_generation_match=0))
            except api.PreconditionFailed:
                # Another writer was first, or this one: a lost acknowledgement makes the library send it again.
                existing = self.stat(name)
                if existing is None:
                    raise JobError(
                        f"{self.url}/{name}: was removed while it was being written; start the job again"
                    ) from None
                if existing != stored:
                    raise NameTaken(name, existing) from None
        return stored

    def join(self, name: str, head: bytes, sources: Sequence[tuple[str, Stored]]) -> Stored:
        wanted, existing = joined([checksum([head]), *(stored for _, stored in sources)]), self.stat(name)
        if is_new := (existing is None):
            existing = self._join(name, head, [source for source, _ in sources])
        if existing == wanted:
            return wanted
        damaged = next((source for source, stored in sources if self.stat(source) != stored), None)
        if is_new:
            self.remove(name)
        if damaged is not None:
            raise not_as_stored(self.url, damaged)
        raise NameTaken(name, existing)

    def replace(self, name: str, data: Part) -> Stored:
        stored = checksum([data])
        with self._user_errors():
            self._upload(Upload(name, [data], stored))
        return stored

    def read(self, name: str, start: int = 0, size: int | None = None) -> bytes:
        return b"" if size == 0 else self._receive(name, start, size, lambda pieces: b"".join(pieces), b"")

    def read_into(self, name: str, start: int, out: memoryview) -> int:
        def fill(pieces: Iterable[bytes]) -> int:
            filled = 0
            for piece in pieces:
                out[filled : filled + len(piece)] = piece
                filled += len(piece)
            return filled

        return self._receive(name, start, len(out), fill, 0) if len(out) else 0

    def stat(self, name: str) -> Stored | None:
        with self._user_errors():
            blob = self._bucket().get_blob(self._object(name), **_request_options())
        return None if blob is None else Stored(int(blob.size or 0), str(blob.crc32c))

    def names(self, prefix: str) -> list[str]:
        with self._user_errors():
            blobs = self._client().list_blobs(
                self.bucket_name,
                prefix=self._prefix + prefix,
                fields="items(name),nextPageToken",
                **_request_options(),
            )
            names = (blob.name.removeprefix(self._prefix) for blob in blobs)
            return sorted(name for name in names if is_name(name))

    def remove(self, name: str) -> None:
        with self._user_errors(), contextlib.suppress(api.NotFound):
            self._blob(name).delete(**_request_options())

    def sweep(self, idle_s: float) -> None:
        # An unfinished upload has no object, and Cloud Storage forgets it after a week.
        with self._user_errors():
            for blob in self._client().list_blobs(
                self.bucket_name, prefix=self._prefix + JOINING, **_request_options()
            ):
                if time.time() - blob.updated.timestamp() > idle_s:
                    self.remove(blob.name.removeprefix(self._prefix))

    def local_path(self, name: str) -> Path | None:
        return None

    def check_writable(self) -> None:
        probe = f"probe-{uuid.uuid4().hex}"
        with self._user_errors(CHECK_DEADLINE_S):
            self._upload(Upload(probe, [b"probe"], checksum([b"probe"]), 0, CHECK_DEADLINE_S))
            self._blob(probe).delete(**_request_options(CHECK_DEADLINE_S))

    def _join(self, name: str, head: bytes, sources: Sequence[str]) -> Stored:
        """Composes head and sources under the name, and returns what has the name now: another writer may be first."""
        scratch = f"{JOINING}{uuid.uuid4().hex}/"
        self.create(f"{scratch}head", [head])
        with self._user_errors():
            last, made = compose_in_tree(self._compose, [f"{scratch}head", *sources], scratch)
            with contextlib.suppress(api.PreconditionFailed):
                self._compose(name, last, if_generation_match=0)
        for temporary in (f"{scratch}head", *made):
            self.remove(temporary)
        if stored := self.stat(name):
            return stored
        raise FileNotFoundError(f"{self.url}/{name}")

    def _compose(self, name: str, sources: Sequence[str], if_generation_match: int | None = None) -> None:
        try:
            blob = self._blob(name)
            blob.content_type = "application/octet-stream"
            blob.compose(
                [self._blob(source) for source in sources],
                if_generation_match=if_generation_match,
                **_request_options(),
            )
        except api.NotFound:
            raise FileNotFoundError(f"{self.url}/{sources[0]} or one of the {len(sources) - 1} after it") from None

    def _receive(self, name: str, start: int, size: int | None, take: Callable[[Iterable[bytes]], T], empty: T) -> T:
        """Returns `take` of the bytes, called again for each retry; `empty` where `start` is past the object's end."""

        def attempt() -> T:
            return take(self._media().receive(self._object(name), start, size))

        with self._user_errors():
            try:
                return retry(RETRY_DEADLINE_S)(attempt)()
            except api.NotFound:
                raise FileNotFoundError(f"{self.url}/{name}") from None
            except api.RequestRangeNotSatisfiable:
                return empty

    def _upload(self, upload: Upload) -> None:
        send = self._send if upload.stored.size <= ONE_REQUEST_BYTES else self._send_in_chunks
        for attempt in range(1, UPLOAD_ATTEMPTS + 1):
            try:
                uploaded = send(upload)
            except api.GoogleAPICallError as error:
                # 404, 410: the server forgot the session; only a new one helps. 400: the content arrived damaged.
                again = error.code in (404, 410) or (error.code == 400 and "crc32c" in str(error).lower())
                if not again or attempt == UPLOAD_ATTEMPTS:
                    raise
                continue
            if Stored(uploaded.size, uploaded.crc32c) == upload.stored:
                return
            with contextlib.suppress(api.NotFound, api.PreconditionFailed):  # removed or replaced meanwhile
                options = _request_options(upload.deadline_s)
                self._blob(upload.name).delete(if_generation_match=uploaded.generation, **options)
        raise JobError(
            f"{self.url}/{upload.name}: arrived damaged {UPLOAD_ATTEMPTS} times and was removed; check the network"
        )

    def _send(self, upload: Upload) -> Uploaded:
        send = retry(upload.deadline_s or RETRY_DEADLINE_S)(self._media().send)
        return send(self._object(upload.name), upload.stored.crc32c, upload.parts, upload.if_generation_match)

    def _send_in_chunks(self, upload: Upload) -> Uploaded:
        blob = self._blob(upload.name)
        blob.crc32c = upload.stored.crc32c
        blob.chunk_size = UPLOAD_CHUNK_BYTES
        blob.upload_from_file(
            PartStream(upload.parts),
            size=upload.stored.size,
            if_generation_match=upload.if_generation_match,
            checksum=cast(str, None),  # sent along already: one pass over the data is enough
            **_request_options(upload.deadline_s),
        )
        return Uploaded(int(blob.size or 0), str(blob.crc32c), int(blob.generation or 0))

    def _object(self, name: str) -> str:
        return self._prefix + check_name(name, self.url)

    def _media(self) -> MediaClient:
        client = self._client()
        return MediaClient(client._http, client.api_endpoint, self.bucket_name, REQUEST_TIMEOUT_S)

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
        return self._bucket().blob(self._object(name))

    @contextmanager
    def _user_errors(self, deadline_s: float | None = None) -> Iterator[None]:
        """Turns errors that the user can fix into JobError; others are bugs and keep their traceback."""
        try:
            yield
        except Exception as error:
            cause = error.cause if isinstance(error, api.RetryError) and error.cause else error
            if reason := reason_of(cause, self.bucket_name, deadline_s or RETRY_DEADLINE_S):
                raise JobError(f"{self.field}={self.url}: {reason}") from error
            raise


def _request_options(deadline_s: float | None = None) -> dict[str, Any]:
    """Returns the keywords that every request of the library takes."""
    return {"timeout": REQUEST_TIMEOUT_S, "retry": retry(deadline_s or RETRY_DEADLINE_S)}
