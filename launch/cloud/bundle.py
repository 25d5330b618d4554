"""The code that hosts run, as one archive whose name is its content: equal sources make equal bytes."""

import gzip
import hashlib
import io
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

import pod_job
from pod_job.config.load import conf_dir
from pod_job.errors import JobError

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


def make_bundle(tasks: str) -> Bundle:
    """Returns the packages, the configuration, the lists of dependencies, and a task file that is given relatively.

    Raises:
        JobError: the sources are not here, or the tasks are too large to send along.
    """
    package = Path(pod_job.__file__).parent
    requirements = requirements_of(package)
    # An installed package holds conf and the requirements inside itself; hosts get what a checkout has.
    sources = {name: path for name, path in tree(package, "pod_job").items() if not name.startswith(INSTALLED_ONLY)}
    files = sources | tree(conf_dir(), "conf") | requirements
    if not Path(tasks).is_absolute():
        files |= tree(Path(tasks), tasks)
    if sum(path.stat().st_size for path in files.values()) > MAX_BYTES:
        raise JobError(f"tasks.path={tasks} is over {MAX_BYTES >> 20} MiB; put it where every host sees it")
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
    """Returns name in the archive -> file, of a file or of all files below a folder."""
    if top.is_file():
        return {name: top}
    inside = (path for path in sorted(top.rglob("*")) if path.is_file() and "__pycache__" not in path.parts)
    return {f"{name}/{path.relative_to(top).as_posix()}": path for path in inside}


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
