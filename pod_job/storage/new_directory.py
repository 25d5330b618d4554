"""Directories that appear whole, for programs that write several files into one by themselves."""

import contextlib
import fcntl
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pod_job.errors import JobError
from pod_job.storage.local_files import reason_of


def check_new(path: Path, field: str = "OUT") -> None:
    """Raises JobError unless `path` is free, or an empty directory."""
    try:
        if path.exists() and any(path.iterdir()):
            raise JobError(f"{field}={path}: is not empty; delete it or name another folder")
    except NotADirectoryError as error:
        raise JobError(f"{field}={path}: is a file, or below one; name another folder") from error


@contextmanager
def new_directory(path: Path, field: str = "OUT") -> Iterator[Path]:
    """Yields an empty directory beside `path` that becomes it at the end of the block; on an error it is removed.

    Those of killed processes, which no longer hold the lock on them, are removed too.

    Raises:
        JobError: the file system refuses, or `path` is not empty any more.
    """
    unfinished = path.parent / f".{path.name}.{uuid.uuid4().hex}.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path)
        unfinished.mkdir()
        descriptor = os.open(unfinished, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):  # no locks there: nobody can tell, and it is never removed
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield unfinished
            check_new(path, field)
            os.replace(unfinished, path)
        finally:
            os.close(descriptor)
            shutil.rmtree(unfinished, ignore_errors=True)
    except OSError as error:
        raise JobError(f"{field}={path}: {reason_of(error)}") from error


def _remove_abandoned(path: Path) -> None:
    """Removes what killed processes left on the way to `path`."""
    for left in path.parent.iterdir():
        if re.fullmatch(re.escape(f".{path.name}.") + r"[0-9a-f]{32}\.tmp", left.name):
            with contextlib.suppress(OSError):
                descriptor = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(left)
                finally:
                    os.close(descriptor)
