"""The code that hosts run, as one archive whose name is its content: equal sources make equal bytes."""

import dataclasses
import gzip
import hashlib
import io
import os
import stat
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

import pod_job
from pod_job.config.load import conf_dir
from pod_job.config.tasks import TasksConfig
from pod_job.errors import JobError
from pod_job.prompts.sources.files import source_files
from pod_job.run_folder.layout import COMMITS, RUN

REQUIREMENTS = ("pyproject.toml", "constraints.txt")
INSTALLED_ONLY = ("pod_job/conf/", "pod_job/requirements/")
MAX_BYTES = 64 << 20
HOST_PYTHON = ".".join(map(str, sys.version_info[:2]))
"""Hosts get the Python of this machine, and with it the very versions that were checked and compiled with here."""


@dataclass(frozen=True)
class Bundle:
    """`data`: a .tar.gz; `name`: its SHA-256; `environment`: a name for what its dependencies install."""

    name: str
    data: bytes
    environment: str

    @property
    def file(self) -> str:
        return f"{self.name}.tar.gz"


def make_bundle(tasks: TasksConfig) -> Bundle:
    """Returns the packages, the configuration, the lists of dependencies, and the task files of a relative path.

    Raises:
        JobError: the sources are not here, or the tasks are too large to send along or are not to be sent.
    """
    package = Path(pod_job.__file__).parent
    requirements = requirements_of(package)
    # An installed package holds conf and the requirements inside itself; hosts get what a checkout has.
    sources = {name: path for name, path in tree(package, "pod_job").items() if not name.startswith(INSTALLED_ONLY)}
    files = sources | tree(conf_dir(), "conf") | requirements
    files |= task_files(tasks)
    if sum(path.stat().st_size for path in files.values()) > MAX_BYTES:
        raise JobError(
            f"tasks.path={tasks.path} is over {MAX_BYTES >> 20} MiB and is uploaded to a bucket alone; use "
            "storage.run_dir=gs://bucket/prefix or cloud.uploads=gs://bucket/folder"
        )
    data = archive(files)
    installs = b"".join(path.read_bytes() for path in requirements.values()) + HOST_PYTHON.encode()
    return Bundle(hashlib.sha256(data).hexdigest(), data, hashlib.sha256(installs).hexdigest()[:16])


def requirements_of(package: Path) -> dict[str, Path]:
    """Returns the lists of dependencies: inside the installed package, or beside it in a checkout; else JobError."""
    inside = package / "requirements"
    files = {name: (inside if inside.is_dir() else package.parent) / name for name in REQUIREMENTS}
    for name, path in files.items():
        if not path.is_file():
            raise JobError(f"{name} is not in {path.parent}; install the package again, or launch from a checkout")
    return files


def pinned_versions() -> dict[str, str]:
    """Returns package -> the version that constraints.txt gives a host, which has the Python of this machine."""
    from packaging.requirements import Requirement  # for `doctor` alone

    lines = requirements_of(Path(pod_job.__file__).parent)["constraints.txt"].read_text().splitlines()
    wanted = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {
        requirement.name: str(requirement.specifier).removeprefix("==")
        for requirement in wanted
        if requirement.marker is None or requirement.marker.evaluate()
    }


def tree(top: Path, name: str) -> dict[str, Path]:
    """Returns name in the archive -> file, of all files below a folder of code but hidden ones and links."""
    inside = {path.relative_to(top): path for path in sorted(top.rglob("*")) if path.is_file()}
    return {
        f"{name}/{place.as_posix()}": path
        for place, path in inside.items()
        if not (path.is_symlink() or is_hidden(place) or "__pycache__" in place.parts)
    }


def task_files(tasks: TasksConfig) -> dict[str, Path]:
    """Returns name in the archive -> file, of exactly the files that the job reads of a relative `tasks.path`.

    An absolute path is one that every host sees; what was uploaded is read there.

    Raises:
        JobError: a file among them that nobody would want to send: hidden, outside the folder, or of a run.
    """
    sent: dict[str, Path] = {}
    here = [path for path, place in zip(tasks.paths, tasks.places, strict=True) if path == place and "://" not in path]
    for top in map(Path, here):
        if top.is_absolute():
            continue
        files = source_files(dataclasses.replace(tasks, path=str(top), uploaded=None))
        for path in files:
            place = Path(os.path.normpath(path))
            if reason := why_not_to_send(place, path, top):
                raise JobError(
                    f"tasks.path={top}: {path} {reason}; put the task files alone into a folder of their own"
                )
            sent[place.as_posix()] = path
    return sent


def why_not_to_send(place: Path, path: Path, top: Path) -> str:
    """Returns what speaks against sending a task file to the hosts; "" where nothing does."""
    if ".." in place.parts:
        return "is outside the folder that you launch from"
    if is_hidden(place):
        return "is hidden"
    if path != top and not path.resolve().is_relative_to(top.resolve()):
        return "is a link that leads out of the folder"
    if not stat.S_ISREG(path.stat().st_mode):
        return "is not a regular file"
    if path != top and any((folder / RUN).is_file() and (folder / COMMITS).is_dir() for folder in path.parents):
        return "is in a run folder"
    return ""


def is_hidden(place: Path) -> bool:
    return any(word.startswith(".") for word in place.parts)


def archive(files: dict[str, Path]) -> bytes:
    """Returns a .tar.gz of the files' names and contents alone: no times, no owners."""
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as zipped, tarfile.open(fileobj=zipped, mode="w") as tar:
        for name in sorted(files):
            content = files[name].read_bytes()
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()
