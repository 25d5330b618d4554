"""The archive of an environment runs from a folder that is not the one in which it was made, which is gone by then."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.cloud.bundle import make_bundle
from launch.cloud.environment import write_archive
from pod_job.config.tasks import TasksConfig

pytestmark = [pytest.mark.slow, pytest.mark.pod]
VERSION = ".".join(map(str, sys.version_info[:2]))
PYTHON, LIBRARY = Path(f"/usr/bin/python{VERSION}"), Path(f"/usr/lib/python{VERSION}")
"""A Python that finds its library beside itself, as those that uv installs: linked statically."""
UNUSED = shutil.ignore_patterns(
    "test", "idlelib", "tkinter", "lib2to3", "ensurepip", "config-*", "__pycache__", "pydoc*"
)
# What the configuration is read with, some of it machine code.
PACKAGES = (
    *(
        "antlr4",
        "google_crc32c",
        "hydra",
        "jaxtyping",
        "msgspec",
        "numpy",
        "numpy.libs",
        "omegaconf",
        "packaging",
        "rich",
    ),
    *("wadler_lindig", "yaml", "_yaml", "pygments", "markdown_it", "mdurl", "typing_extensions.py"),
)
# In a mount namespace of its own: all places that the Python and its packages came from are empty there.
HIDDEN = 'for folder in "$@"; do mount -t tmpfs none "$folder"; done; cd "$CODE" && exec "$PYTHON" -E -m pod_job'
LOADED = """
import msgspec, numpy, os, sys, yaml, ssl, sqlite3
from pod_job.config.load import load
load(["experiment=v5e64", "storage.run_dir=gs://bucket/run"])
files = {name: module.__file__ for name, module in sys.modules.items() if getattr(module, "__file__", None)}
print(sys.prefix, sys.base_prefix, numpy.arange(5).sum(), msgspec.json.encode([1]).decode())
print(*(path for path in files.values() if not path.startswith((sys.prefix + "/", os.getcwd() + "/"))))
"""


@pytest.fixture
def environment(tmp_path: Path, require: Callable[[bool, str], None]) -> Path:
    """A Python and its packages in a folder, as `make_environment` leaves them."""
    require(PYTHON.exists() and LIBRARY.is_dir(), f"{PYTHON}, the distribution's")
    namespace = subprocess.run(["unshare", "--map-root-user", "--mount", "true"]).returncode == 0
    require(namespace, "unshare of util-linux, and the right to a mount namespace")
    made, packages = tmp_path / "made", Path(sysconfig.get_path("purelib"))
    (made / "bin").mkdir(parents=True)
    shutil.copy(PYTHON, made / "bin" / f"python{VERSION}")
    (made / "bin" / "python").symlink_to(f"python{VERSION}")
    library = made / "lib" / f"python{VERSION}"
    shutil.copytree(LIBRARY, library, ignore=UNUSED)
    (made / "lib" / "python3").mkdir()  # where Debian's Python looks for packages
    (made / "lib" / "python3" / "dist-packages").symlink_to(f"../python{VERSION}/site-packages")
    for name in PACKAGES:
        source = packages / name
        if source.is_dir():
            shutil.copytree(
                source, library / "site-packages" / name, ignore=shutil.ignore_patterns("tests", "__pycache__")
            )
        elif source.exists():
            shutil.copy(source, library / "site-packages" / name)
    return made


def test_the_job_runs_from_an_archive_unpacked_elsewhere(environment: Path, tmp_path: Path) -> None:
    write_archive(environment, tmp_path / "environment.tar.gz")
    shutil.rmtree(environment)
    elsewhere, code = tmp_path / "another" / "place", tmp_path / "code"
    with tarfile.open(tmp_path / "environment.tar.gz") as tar:
        tar.extractall(elsewhere, filter="fully_trusted")  # links and all, as `tar -x` of prepare.sh
    (tmp_path / "code.tar.gz").write_bytes(make_bundle(TasksConfig(path="gs://bucket/tasks.jsonl")).data)
    with tarfile.open(tmp_path / "code.tar.gz") as tar:
        tar.extractall(code, filter="data")

    def run(command: str) -> "subprocess.CompletedProcess[str]":
        places = {LIBRARY, Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve()}
        hidden = [str(place) for place in places if place.is_dir()]
        env = {
            "PATH": "/usr/bin:/bin",
            "HOME": str(tmp_path),
            "CODE": str(code),
            "LOADED": LOADED,
            "PYTHON": str(elsewhere / "bin/python"),
        }
        argv = ["unshare", "--map-root-user", "--mount", "bash", "-c", command, "bash", *hidden]
        return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60)

    loaded = run(HIDDEN.replace("-E -m pod_job", '-E -c "$LOADED"'))
    assert loaded.returncode == 0, loaded.stderr
    first, outside = loaded.stdout.split("\n")[:2]
    assert first.split() == [str(elsewhere), str(elsewhere), "10", "[1]"]
    assert outside == ""
    job = run(HIDDEN)  # it has all but jax, which would be most of the archive
    assert job.returncode == 2, job.stderr
    assert job.stderr.startswith(f"error: pod-job needs the package jax, which {elsewhere}/bin/python does not have")
    assert not os.path.lexists(environment)
