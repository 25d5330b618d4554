"""Environment of the hosts as one archive in a bucket, for hosts without a way out to a package index.

It is made on this machine by uv, whatever the machine is: a Python of its own (python-build-standalone, which runs
from any folder) with the packages of constraints.txt, as wheels for the hosts. Its name is made from what it installs
and its SHA-256, so that every run which needs the same environment finds it.
"""

import hashlib
import mmap
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path
from urllib.parse import quote

import pod_job
from launch.cloud.bundle import HOST_PYTHON, Bundle, make_bundle, requirements_of
from launch.shell import call
from launch.view.timed_log import Log
from pod_job.config.schema import JobConfig
from pod_job.errors import JobError
from pod_job.storage.folder import Folder
from pod_job.storage.open import open_folder

PYTHON = f"cpython-{HOST_PYTHON}-linux-x86_64-gnu"
PLATFORM = "x86_64-manylinux_2_31"  # as the wheels of libtpu; the images of TPU VMs have glibc 2.35
COMPRESSION = 1  # most of it is machine code, which more work makes little smaller
MAKE_S = 1800.0
MOST_SHOWN = 500  # characters of what uv says


def place_environment(config: JobConfig, bundle: Bundle, log: Log) -> dict[str, str]:
    """Returns the values of `prepare.sh` that name the archive, which is made unless the bucket has it.

    They are empty where hosts make their environment themselves.

    Raises:
        JobError: uv is missing here, or cannot make it.
    """
    if config.cloud.environments is None:
        return {"ENVIRONMENT_URL": "", "ENVIRONMENT_SHA256": ""}
    folder = open_folder(config.cloud.environments, "cloud.environments")
    prefix = f"environment_{bundle.environment}_"
    name = next(iter(folder.names(prefix)), None) or make_archive(folder, prefix, log)
    sha256 = name.removeprefix(prefix).partition(".")[0]
    return {"ENVIRONMENT_URL": object_path(folder, name), "ENVIRONMENT_SHA256": sha256}


def send_environment(config: JobConfig, log: Log) -> None:
    """Makes the archive before a pod is paid for, where hosts take it from one. JobError as `place_environment`."""
    if config.cloud.environments is not None:
        place_environment(config, make_bundle(config.tasks), log)


def object_path(folder: Folder, name: str) -> str:
    """Returns where a host downloads an object of a bucket's folder, as a path at the address of Cloud Storage."""
    bucket, _, prefix = folder.url.removeprefix("gs://").partition("/")
    object_name = quote(f"{prefix}/{name}".lstrip("/"), safe="")
    return f"/storage/v1/b/{bucket}/o/{object_name}?alt=media"


def make_archive(folder: Folder, prefix: str, log: Log) -> str:
    """Makes the environment here and stores its archive; returns the archive's name."""
    log(f"environment: making Python {HOST_PYTHON} and the packages for {folder.url}; minutes, once")
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "environment.tar.gz"
        write_archive(make_environment(Path(scratch)), path)
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            name = f"{prefix}{sha256}.tar.gz"
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content, memoryview(content) as data:
                folder.create(name, [data])
        log(f"environment: {path.stat().st_size / 1e6:,.0f} MB in {folder.url}/{name}")
    return name


def make_environment(scratch: Path) -> Path:
    """Returns the folder of a new environment for hosts."""
    uv, installs = find_uv(), scratch / "python"
    run_uv([uv, "python", "install", "--quiet", f"--install-dir={installs}", "--no-bin", "--no-registry", PYTHON])
    (environment,) = (path for path in installs.glob("cpython-*") if not path.is_symlink())
    requirements = requirements_of(Path(pod_job.__file__).parent)
    packages = environment / "lib" / f"python{HOST_PYTHON}" / "site-packages"
    run_uv(
        [
            *(uv, "pip", "install", "--quiet", f"--target={packages}", f"--python={sys.executable}"),
            f"--python-platform={PLATFORM}",
            *("-c", str(requirements["constraints.txt"]), "-r", str(requirements["pyproject.toml"]), "--extra=tpu"),
        ]
    )
    python = environment / "bin" / "python"
    if not python.exists():
        python.symlink_to(f"python{HOST_PYTHON}")
    return environment


def find_uv() -> str:
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    if uv is None:
        raise JobError("cloud.environments: uv is not installed here, which makes the environment; pip install uv")
    return uv


def run_uv(argv: list[str]) -> None:
    """Runs uv. Raises JobError with its reason."""
    done = call(argv, timeout_s=MAKE_S)
    if done.code:
        reason = " ".join(done.err.split()).removeprefix("error: ") or f"exit status {done.code}"
        raise JobError(f"cloud.environments: uv {' '.join(argv[1:3])}: {reason[:MOST_SHOWN]}")


def write_archive(environment: Path, path: Path) -> None:
    """Writes the folder's content into a .tar.gz, without owners."""

    def nobodys(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
        entry.uid = entry.gid = 0
        entry.uname = entry.gname = ""
        return None if "__pycache__" in Path(entry.name).parts else entry

    with tarfile.open(path, "w:gz", compresslevel=COMPRESSION) as tar:
        tar.add(environment, ".", filter=nobodys)
