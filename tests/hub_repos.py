"""Repositories of the fake hub: the files of each commit, in git or in large-file storage."""

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

LFS_SUFFIXES = (".parquet", ".arrow", ".safetensors", ".npy", ".npz", ".bin", ".gz", ".zst", ".bz2")
LFS_BYTES = 10 << 20
"""Files of these names, and larger ones, are in large-file storage."""


@dataclass(frozen=True)
class Blob:
    """Content of a file, in git or in large-file storage."""

    content: bytes
    lfs: bool

    @property
    def oid(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    def entry(self, path: str) -> dict[str, Any]:
        """Returns the file as a tree has it."""
        listed = {"type": "file", "oid": self.oid, "size": len(self.content), "path": path}
        large = {"lfs": {"oid": self.sha256, "size": len(self.content), "pointerSize": 134}}
        return listed | (large if self.lfs else {})


@dataclass
class Repo:
    """A repository: the files of each commit, and the commits that branches are at.

    `token`: what has to be presented to read it; None: it is public. `listed`: without it, files are seen but not read,
    as those of a gated repository.
    """

    files: dict[str, dict[str, Blob]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    token: str | None = None
    listed: bool = False

    def commit(self, tree: dict[str, Blob], ref: str = "main", message: str = "change") -> str:
        """Makes the files the content of a branch and returns the commit."""
        listed = json.dumps([len(self.files), sorted((name, blob.sha256) for name, blob in tree.items())])
        oid = hashlib.sha1(listed.encode()).hexdigest()
        self.files[oid], self.refs[ref] = tree, oid
        self.messages.append(message)
        return oid

    def at(self, revision: str) -> str | None:
        """Returns the commit that a revision is; None where there is none."""
        oid = self.refs.get(revision, revision)
        return oid if oid in self.files else None


def is_large(name: str, size: int) -> bool:
    return name.endswith(LFS_SUFFIXES) or size > LFS_BYTES
