"""Lists of the files at a place: on a disk, in a bucket, on the Hugging Face hub."""

import fnmatch
import glob
import os
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from pod_job.errors import JobError
from pod_job.prompts.sources.places import (
    FIELD,
    HUB,
    FileState,
    Listed,
    LocalFile,
    bucket_folder,
    hub_parts,
    naming,
    unreadable,
)
from pod_job.storage.local_files import expanded, reason_of

IRREGULAR = FileState(0, "irregular")
"""State of what is no regular file: a pipe, or a link to nothing."""
TICK_NS = 20_000_000
"""Longest step of the clock by which file systems write times; the kernel's is 10 ms at most."""
WILDCARDS = re.compile(r"[*?\[]")


def list_place(path: str) -> tuple[str, list[Listed]]:
    """Returns the files that a path, a folder, a glob or a URL stands for, sorted, and the folder that they are in.

    Raises:
        JobError: nothing is there, or the place cannot be listed.
    """
    base, pattern = base_of(path), pattern_of(path)
    if path.startswith("gs://"):
        listed = list_bucket(base)
    elif path.startswith(HUB):
        listed = list_hub(base)
    elif "://" in path:
        raise JobError(f"{FIELD}={path}: give a path of this machine, gs://bucket/... or {HUB}OWNER/NAME/...")
    elif pattern:
        paths = sorted(glob.glob(str(expanded(path)), recursive=True, include_hidden=False))
        listed = [entry for file in paths if not os.path.isdir(file) for entry in list_local(Path(file), file)]
    else:
        listed = list_local(expanded(path), path)
    if pattern and "://" in path and (named := [entry for entry in listed if entry.url == path]):
        return path, named  # an object may have a name that looks like a pattern
    if pattern and "://" in path:
        listed = [entry for entry in listed if matches(below(entry.url, base), path[len(base) + 1 :])]
    if not listed and pattern:
        raise JobError(f"{FIELD}={path} matches no file; correct the pattern")
    if not listed and not os.path.isdir(expanded(path)):
        raise JobError(f"{FIELD}={path} does not exist; give a file, a folder or a pattern of task files")
    return base, listed


def pattern_of(path: str) -> bool:
    """Returns whether a path is a glob; one that exists under this very name is none."""
    return WILDCARDS.search(path) is not None and not os.path.exists(expanded(path))


def base_of(path: str) -> str:
    """Returns the folder that the files of a path are in: the path itself, of a glob what lies before its wildcards."""
    return WILDCARDS.split(path)[0].rpartition("/")[0] if pattern_of(path) else path.rstrip("/")


def below(url: str, base: str) -> str:
    """Returns the name of a file within the folder `base`; of that file itself, its last word."""
    if url.startswith(HUB):  # a listing has the commit, the path may have a branch
        url, base = hub_parts(url)[2], hub_parts(base)[2]
    if not base:
        return url
    inside = url.removeprefix(f"{base.rstrip('/')}/")
    return url.rpartition("/")[2] if inside == url or not inside else inside


def is_named(url: str, path: str) -> bool:
    """Returns whether a path, a folder, a glob, a URL or the name of a dataset may stand for the file `url`."""
    if url.startswith(HUB):
        words = path.removeprefix(HUB).split("/")
        return len(words) > 1 and hub_parts(url)[0] == f"{words[0]}/{words[1].partition('@')[0]}"
    base = base_of(path)
    if "://" in url or "://" in path:
        inside = url.removeprefix(base)
        return url.startswith(base) and inside[:1] in ("", "/") and ".." not in inside.split("/")
    file, folder = expanded(url), expanded(base)
    inside = file.parts[len(folder.parts) :]
    rooted = base or path.startswith("/") == url.startswith("/")
    return bool(rooted) and file.parts[: len(folder.parts)] == folder.parts and ".." not in inside


def files_below(top: Path) -> Iterator[Path]:
    """Yields all below a folder but folders and links to them, however deep. JobError for one that cannot be read."""
    folders = [top]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(folder / entry.name)
                    elif not os.path.isdir(entry):
                        yield folder / entry.name
        except OSError as error:
            raise unreadable(str(folder), reason_of(error)) from error


def list_local(top: Path, url: str) -> list[Listed]:
    """Returns the file at a path, or all files below the folder there; what is written later has another time."""
    files = sorted(files_below(top)) if os.path.isdir(top) else [top]
    entries = []
    for file in files:
        place = url if file == top else f"{url.rstrip('/')}/{file.relative_to(top).as_posix()}"
        if os.path.lexists(file):
            entries.append(Listed(place, LocalFile(str(file)).state() or IRREGULAR))
    await_tick(max((int(entry.state.version) for entry in entries if entry.state != IRREGULAR), default=0))
    return entries


def await_tick(newest_ns: int) -> None:
    """Waits until files that are written have a later time than this one.

    Two writes within one tick have the same time, and the size may be the same, too: nothing would tell them apart.
    """
    while 0 <= time.time_ns() - newest_ns <= TICK_NS:
        time.sleep(TICK_NS / 1e9)


def list_bucket(url: str) -> list[Listed]:
    """Returns the object of this name, or all objects below it."""
    bucket, _, prefix = url.removeprefix("gs://").rstrip("/").partition("/")
    from pod_job.storage.gcs import BucketFolder

    folder = bucket_folder(f"gs://{bucket}")
    assert isinstance(folder, BucketFolder)
    with naming(url, folder):
        stored = folder.listing(prefix)
    inside = {
        name: content
        for name, content in stored.items()
        if name == prefix or not prefix or name.startswith(f"{prefix}/")
    }
    return [
        Listed(f"gs://{bucket}/{name}", FileState(content.size, content.crc32c), f"crc32c:{content.crc32c}")
        for name, content in sorted(inside.items())
    ]


def list_hub(url: str) -> list[Listed]:
    """Returns the file of a dataset on the hub, or all files below it, at the commit that the revision is now."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    from pod_job.checkpoints.hub import hub_reason

    repo, revision, path = hub_parts(url)
    try:
        api = HfApi()
        commit = api.dataset_info(repo, revision=revision or None).sha
        tree = api.list_repo_tree(repo, recursive=True, revision=commit, repo_type="dataset")
        files = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
    except Exception as error:  # the HTTP library beneath the hub's, and its errors, change with its version
        raise JobError(f"{FIELD}={url} cannot be listed ({hub_reason(error)})") from error
    path = path.strip("/")
    inside = [name for name in sorted(files) if not path or name == path or name.startswith(f"{path}/")]
    entries = []
    for name in inside:
        entry = files[name]
        checksum = f"sha256:{entry.lfs.sha256}" if entry.lfs else f"git-sha1:{entry.blob_id}"
        entries.append(Listed(f"{HUB}{repo}@{commit}/{name}", FileState(entry.size, checksum), checksum))
    return entries


GLOB_WORDS = re.compile(r"(\*\*/|\*\*|\*|\?|\[!?\]?[^\]]*\])")


def matches(name: str, pattern: str) -> bool:
    """Returns whether a name matches a glob; ** stands for any folders, and a folder for all that is in it.

    In time that grows with the lengths alone: the pattern may be of the README.md of a stranger.
    """
    if name.startswith(f"{pattern.rstrip('/')}/"):
        return True
    places = {0}
    for word in filter(None, GLOB_WORDS.split(pattern)):
        places = {after for place in places for after in places_after(name, place, word)}
    return len(name) in places


def places_after(name: str, place: int, word: str) -> Iterable[int]:
    """Returns the places in the name that a word of a glob may end at, which begins at `place`."""
    following = name[place : place + 1]
    match word:
        case "**/":
            return [place, *(i + 1 for i in range(place, len(name)) if name[i] == "/")]
        case "**":
            return range(place, len(name) + 1)
        case "*":
            end = name.find("/", place)
            return range(place, (len(name) if end < 0 else end) + 1)
        case "?":
            return [place + 1] if following not in ("", "/") else []
    if word.startswith("[") and word.endswith("]") and len(word) > 2:
        return [place + 1] if following not in ("", "/") and fnmatch.fnmatchcase(following, word) else []
    return [place + len(word)] if name.startswith(word, place) else []
