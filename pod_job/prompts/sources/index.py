"""Index of a task source: its files as they were when they were counted, and where in them samples begin.

A large source is counted once for a run; the index is kept in the run folder, and every later start reads it instead of
the source. It is small: of a file of lines a mark of a few bytes for every 64, or at most 4096 for all of them.
"""

import hashlib
import json
import zlib
from typing import Literal

import msgspec
import numpy as np
from jaxtyping import Int64

from pod_job.formats.records import Count, Record
from pod_job.prompts.sources.split import SplitPart

FORMAT: Literal[1] = 1


class FileEntry(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A file of a source.

    Attributes:
        url: a path, as the configuration gives it, or a URL.
        name: the part of the URL that tells the files of the source apart.
        version: what `FileState` has; `checksum` is over its content, with the algorithm in front.
        samples: None until the file is counted.
        marks: what its reader needs to find a sample; its form depends on the kind of file.
        entries: of a compressed file of several members, where some of them begin: in the file, and in its content.
        split: split of a dataset.
    """

    url: str
    name: str
    size: Count
    version: str
    checksum: str | None = None
    samples: Count | None = None
    marks: bytes = b""
    entries: bytes = b""
    split: str = ""


class TaskIndex(Record, frozen=True):
    """The files of a source in their order, counted.

    `kind` is that of all of them, `source` the key of what was asked for; `parts` of their splits are used: none, all.
    """

    format: Literal[1]
    kind: str
    source: str
    files: list[FileEntry]
    parts: list[SplitPart] = msgspec.field(default_factory=list)

    @property
    def bytes(self) -> int:
        return sum(entry.size for entry in self.files)

    def fingerprint(self, rules: dict[str, object]) -> str:
        """Returns the SHA-256 over the files' names, sizes and checksums, and the rules by which samples are chosen.

        The name of a single file does not count: a copy of it is the same source.
        """
        many = len(self.files) > 1
        files = [[entry.name if many else "", entry.split, entry.size, entry.checksum] for entry in self.files]
        return hashlib.sha256(json.dumps([self.kind, files, rules], sort_keys=True).encode()).hexdigest()


def pack_marks(marks: Int64[np.ndarray, "n ..."]) -> bytes:
    """Returns ascending numbers as compressed differences."""
    steps = np.diff(marks, axis=0, prepend=np.zeros_like(marks[:1]))
    return zlib.compress(np.ascontiguousarray(steps.T).astype("<i8").tobytes(), 6)


def unpack_marks(data: bytes, columns: int = 1) -> Int64[np.ndarray, "n K"]:
    """Returns the numbers [n, columns] that `pack_marks` packed. ValueError or zlib.error where they are damaged."""
    steps = np.frombuffer(zlib.decompress(data), "<i8").reshape(columns, -1)
    return np.cumsum(steps, axis=1).T.astype(np.int64)
