"""A host on which scripts of the launcher run by a real bash, and the index of packages that it reaches."""

import getpass
import io
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path

import pytest

from launch.cloud.remote import Answer, command, read_answers, script
from launch.shell import Finished
from tools.fakepod.metadata import MetadataServer

PYTHON = ".".join(map(str, sys.version_info[:2]))
UV = shutil.which("uv", path=f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}")
PYPROJECT = """\
[project]
name = "job"
version = "1"
requires-python = ">=3.11"
dependencies = ["greeting"]

[project.optional-dependencies]
tpu = ["chips"]
"""


class Machine:
    """One host: a home, a metadata server, and an index of packages that is a folder."""

    def __init__(self, root: Path) -> None:
        self.home, self.index, self.tools = root / "home", root / "index", root / "tools"
        for folder in (self.home, self.index, self.tools):
            folder.mkdir()
        self.metadata = MetadataServer(["127.0.0.1"], 0)
        # The Python that made this environment: --user installs are refused within one.
        self.tools.joinpath("python3").symlink_to(Path(sys.base_prefix) / "bin" / f"python{PYTHON}")
        for package in ("greeting", "chips"):
            self.publish(package, "1.0", {f"{package}.py": "VERSION = '1.0'\n"})

    def publish(self, package: str, version: str, files: Mapping[str, str]) -> None:
        """Puts a wheel into the index; files under scripts/ become commands."""
        info = f"{package}-{version}"
        named = {name.replace("scripts/", f"{info}.data/scripts/"): text for name, text in files.items()}
        named[f"{info}.dist-info/METADATA"] = f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n"
        named[f"{info}.dist-info/WHEEL"] = (
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        with zipfile.ZipFile(self.index / f"{info}-py3-none-any.whl", "w") as wheel:
            for name, text in named.items():
                entry = zipfile.ZipInfo(name)
                entry.external_attr = 0o100755 << 16  # of a plain file that can be run
                wheel.writestr(entry, text)
            wheel.writestr(f"{info}.dist-info/RECORD", "".join(f"{name},,\n" for name in named))

    def send(self, constraints: str) -> dict[str, str]:
        """Copies an archive of code here, as scp does; the values that `prepare` gets."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
            for name, text in {"pyproject.toml": PYPROJECT, "constraints.txt": constraints}.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(text)
                tar.addfile(entry, io.BytesIO(text.encode()))
        bundle = sha256(buffer.getvalue()).hexdigest()
        self.home.joinpath(f".pod_job-{bundle}.tar.gz").write_bytes(buffer.getvalue())
        named = sha256(constraints.encode()).hexdigest()[:16]
        made_here = {"ENVIRONMENT": named, "ENVIRONMENT_URL": "", "ENVIRONMENT_SHA256": "", "HOST_PYTHON": PYTHON}
        return {"BUNDLE": bundle, "BUNDLE_URL": "", "PYTHON": ""} | made_here

    def answer(self, name: str, values: Mapping[str, str], **variables: str) -> Answer:
        env = {
            "HOME": str(self.home),
            "USER": getpass.getuser(),
            "PATH": f"{self.tools}:/usr/bin:/bin",
            "GCE_METADATA_IP": self.metadata.address,
            "UV_CACHE_DIR": str(self.home / "cache"),
            "UV_PYTHON_DOWNLOADS": "never",
            **{f"{tool}_FIND_LINKS": str(self.index) for tool in ("UV", "PIP")},
            **{"UV_OFFLINE": "1", "PIP_NO_INDEX": "1"},
            **variables,
        }
        text = command(script(name, values))
        done = subprocess.run(["bash", "-c", text], env=env, capture_output=True, text=True, timeout=120)
        (answer,) = read_answers([Finished(done.returncode, done.stdout, done.stderr)]).values()
        return answer

    def python(self, values: Mapping[str, str], program: str) -> str:
        python = self.home / ".pod_job" / "environments" / values["ENVIRONMENT"] / "bin" / "python"
        return subprocess.run([python, "-c", program], capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def machine(tmp_path: Path, require: Callable[[bool, str], None]) -> Iterator[Machine]:
    require(UV is not None and shutil.which("curl") is not None, "uv and curl")
    require(not Path("/usr/bin/uv").exists(), "a /usr/bin without uv")
    base = Path(sys.base_prefix) / "bin" / f"python{PYTHON}"
    has_pip = base.exists() and subprocess.run([base, "-m", "pip", "--version"], capture_output=True).returncode == 0
    require(has_pip, f"pip for {base}")
    machine = Machine(tmp_path)
    yield machine
    machine.metadata.close()
