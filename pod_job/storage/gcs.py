"""BucketFolder: a run folder in Cloud Storage. No other folder of the code imports google.cloud.

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
from typing import Any, TypeVar

from google.api_core import exceptions as api
from google.cloud import storage
from requests.adapters import HTTPAdapter

from pod_job.errors import JobError
from pod_job.storage.checksums import Part, Stored, checksum, joined
from pod_job.storage.folder import NameTaken, check_name, is_name, not_as_stored
from pod_job.storage.gcs_compose import compose_in_tree
from pod_job.storage.gcs_errors import reason_of, retry
from pod_job.storage.gcs_media import EMPTY, MediaClient, scatter
from pod_job.storage.gcs_upload import Upload, upload

T = TypeVar("T")

RETRY_DEADLINE_S = 300.0
"""How long one request (for a large upload: one chunk) is retried before the job gives up."""
CHECK_DEADLINE_S = 20.0
"""How long the first contact is retried, while the user waits for it."""
REQUEST_TIMEOUT_S = (10.0, 120.0)
"""To connect, and between two packets of an answer."""
CONNECTIONS = 64
PROBE, JOINING = "probe-", "joining/"
"""Prefixes of the objects that a check makes, and `join` on the way; those of a killed process are swept."""
_TEMPORARY = re.compile(rf"{PROBE}[0-9a-f]{{32}}|{JOINING}(?:(?P<name>.+)/)?[0-9a-f]{{32}}/(?:head|\d+)")


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
        return self._create(name, parts, RETRY_DEADLINE_S)

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

    def replace(self, name: str, data: Part) -> bool:
        stored = checksum([data])
        with self._user_errors():
            existing = retry(RETRY_DEADLINE_S)(self._media().describe)(self._object(name))
            # Without the generation, a request that stalls on its way could land over a later one.
            generation = 0 if existing is None else existing.generation
            try:
                upload(self._media(), Upload(self._object(name), [data], stored, generation), RETRY_DEADLINE_S)
            except api.PreconditionFailed:
                return self.stat(name) == stored
        return True

    def read(self, name: str, start: int = 0, size: int | None = None) -> bytes:
        return b"" if size == 0 else self._receive(name, start, size, lambda pieces: b"".join(pieces), b"")

    def read_into(self, name: str, start: int, *outs: memoryview) -> int:
        size = sum(map(len, outs))
        return self._receive(name, start, size, lambda pieces: scatter(pieces, outs), 0) if size else 0

    def stat(self, name: str) -> Stored | None:
        with self._user_errors():
            existing = retry(RETRY_DEADLINE_S)(self._media().describe)(self._object(name))
        return None if existing is None else Stored(existing.size, existing.crc32c)

    def names(self, prefix: str) -> list[str]:
        with self._user_errors():
            return sorted(name for name, _ in self._listed(prefix) if is_name(name))

    def listing(self, prefix: str) -> dict[str, Stored]:
        """Returns the size and checksum of every object whose name begins with the prefix, without reading it."""
        place, fields = self._prefix + prefix, "items(name,size,crc32c),nextPageToken"
        with self._user_errors():
            blobs = self._client().list_blobs(self.bucket_name, prefix=place, fields=fields, **_request_options())
            named = ((str(blob.name).removeprefix(self._prefix), blob) for blob in blobs)
            return {name: Stored(blob.size or 0, blob.crc32c or EMPTY.crc32c) for name, blob in named if is_name(name)}

    def remove(self, name: str) -> None:
        with self._user_errors(), contextlib.suppress(api.NotFound):
            retry(RETRY_DEADLINE_S)(self._media().delete)(self._object(name))

    def sweep(self, idle_s: float, finished: Callable[[str], bool] = lambda name: False) -> None:
        # An unfinished upload has no object, and Cloud Storage forgets it after a week.
        with self._user_errors():
            for name, updated in [listed for prefix in (PROBE, JOINING) for listed in self._listed(prefix)]:
                temporary = _TEMPORARY.fullmatch(name)
                if temporary and (finished(temporary["name"] or "") or time.time() - updated > idle_s):
                    self.remove(name)

    def local_path(self, name: str) -> Path | None:
        return None

    def check_writable(self) -> None:
        probe = f"{PROBE}{uuid.uuid4().hex}"
        with self._user_errors(CHECK_DEADLINE_S), contextlib.suppress(api.NotFound):
            self._create(probe, [b"probe"], CHECK_DEADLINE_S)
            retry(CHECK_DEADLINE_S)(self._media().delete)(self._object(probe))

    def _create(self, name: str, parts: Sequence[Part], deadline_s: float) -> Stored:
        stored = checksum(parts)
        with self._user_errors(deadline_s):
            try:
                upload(self._media(), Upload(self._object(name), parts, stored, 0), deadline_s)
            except api.PreconditionFailed:
                # Another writer was first, or this one: after a lost acknowledgement it is sent again.
                existing = self.stat(name)
                if existing is None:
                    raise JobError(
                        f"{self.url}/{name}: was removed while it was being written; start the job again"
                    ) from None
                if existing != stored:
                    raise NameTaken(name, existing) from None
        return stored

    def _join(self, name: str, head: bytes, sources: Sequence[str]) -> Stored:
        """Composes head and sources under the name, and returns what has the name now: another writer may be first."""
        scratch = f"{JOINING}{name}/{uuid.uuid4().hex}/"
        heads = [f"{scratch}head"] if head else []
        for first in heads:
            self.create(first, [head])
        with self._user_errors():
            last, made = compose_in_tree(self._compose, [*heads, *sources], scratch)
            with contextlib.suppress(api.PreconditionFailed):
                self._compose(name, last, if_generation_match=0)
        for temporary in (*heads, *made):
            self.remove(temporary)
        if stored := self.stat(name):
            return stored
        raise FileNotFoundError(f"{self.url}/{name}")

    def _compose(self, name: str, sources: Sequence[str], if_generation_match: int | None = None) -> None:
        bucket = self._client().bucket(self.bucket_name)
        blob = bucket.blob(self._object(name))
        blob.content_type = "application/octet-stream"
        try:
            blob.compose(
                [bucket.blob(self._object(source)) for source in sources],
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

    def _listed(self, prefix: str) -> Iterator[tuple[str, float]]:
        """Yields the names that begin with the prefix, and when each object was last written to."""
        place, fields = self._prefix + prefix, "items(name,updated),nextPageToken"
        for blob in self._client().list_blobs(self.bucket_name, prefix=place, fields=fields, **_request_options()):
            if blob.name is not None:
                updated = time.time() if blob.updated is None else blob.updated.timestamp()
                yield blob.name.removeprefix(self._prefix), updated

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


def _request_options() -> dict[str, Any]:
    """Returns the keywords that every request of the library takes."""
    return {"timeout": REQUEST_TIMEOUT_S, "retry": retry(RETRY_DEADLINE_S)}
