"""Files that appear whole: written beside their name under another one, then given it; and what file systems refuse."""

import contextlib
import ctypes
import errno
import os
import re
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pod_job.errors import JobError
from pod_job.storage.checksums import Part
from pod_job.storage.direct_io import write_all

TEMPORARY = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{32}\.tmp|probe-[0-9a-f]{32}")
"""Names of files that are being written, and of those that a check makes; of a killed process they are swept."""
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_AT_FDCWD, _RENAME_NOREPLACE, _RENAME_EXCL = -100, 1, 4


def expanded(path: str | Path) -> Path:
    """Returns the path with the home folder in place of ~; that of an unknown user stays as it is."""
    return Path(os.path.expanduser(path))


@contextmanager
def user_errors(what: str) -> Iterator[None]:
    """Turns what a file system refuses into a JobError about `what`; FileNotFoundError passes."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise JobError(f"{what}: {reason_of(error)}") from error


def reason_of(error: OSError) -> str:
    """Returns the reason and the fix for the user."""
    if error.errno in _FULL:
        return "no space left; free some and run the same command again"
    return f"{error.strerror or error}; name a folder you may read and write, on a disk that works"


def write_temporary(path: Path, parts: Iterable[Part]) -> Path:
    """Writes the parts to a synced file beside `path`; its leading dot hides it in listings should we die here.

    Raises:
        JobError: its folder was removed, or is one in which nothing can be made, as in /proc.
        OSError: anything else that the file system refuses.
    """
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}.tmp"
    try:
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True, exist_ok=True)
            sync_directory(path.parent.parent)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except FileNotFoundError as error:
        raise JobError(f"{path}: nothing can be made in its folder; name another one") from error
    try:
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            write_all(file.fileno(), parts)
            os.fsync(file.fileno())
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    return temporary


def give_name(temporary: Path, path: Path, name: Callable[[Path, Path], None]) -> None:
    """Gives the file its name by `name(temporary, path)`; the name that it had is gone, also where that fails."""
    try:
        name(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def name_new(temporary: Path, path: Path) -> None:
    """Gives the file a name that no other file has.

    By a hard link, or where there are none (exFAT, vfat, SMB) by a rename that replaces nothing.

    Raises:
        FileExistsError: another file has the name.
        FileNotFoundError: the file was swept, as one that finished the same work may do.
        JobError: the file system has neither.
    """
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        _rename(temporary, path)


def _rename(temporary: Path, path: Path) -> None:
    """Renames the file, replacing none. FileExistsError, JobError as `name_new` raises them."""
    libc = ctypes.CDLL(None, use_errno=True)
    source, target = os.fsencode(temporary), os.fsencode(path)
    try:
        if sys.platform == "darwin":
            failed = libc.renamex_np(source, target, _RENAME_EXCL)
        else:
            failed = libc.renameat2(_AT_FDCWD, source, _AT_FDCWD, target, _RENAME_NOREPLACE)
    except AttributeError:  # a C library without it
        failed = ctypes.set_errno(errno.ENOSYS) or -1
    if not failed:
        return
    number = ctypes.get_errno()
    if number in (errno.EINVAL, *_NO_LINKS):
        raise JobError(
            f"{path}: its file system has neither hard links nor renames that replace nothing, as mounts of buckets "
            "have not; name a folder on another disk, or of a bucket its gs://bucket/prefix"
        )
    raise OSError(number, os.strerror(number), str(temporary), None, str(path))


def sync_directory(path: Path) -> None:
    """Makes the directory's entries survive a power cut; a file's own fsync does not cover its name."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, *_NO_LINKS):  # file systems that cannot, such as SMB
            raise
    finally:
        os.close(descriptor)
