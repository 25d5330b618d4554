"""The scripts of a host, run by a real bash with a real metadata server and real uv and pip; only ssh is left out."""

import fcntl
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
from importlib import metadata
from pathlib import Path

import pytest

from launch.cloud.remote import Answer, command, read_answers, script
from launch.shell import Finished
from pod_job.formats.records import decode
from pod_job.run_folder.bucket_rate import HostRate
from tools.fakepod.metadata import MetadataServer

ROOT = Path(__file__).parent.parent.parent
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
        return {"BUNDLE": bundle, "BUNDLE_URL": "", "PYTHON": "", "ENVIRONMENT": named, "HOST_PYTHON": PYTHON}

    def answer(self, name: str, values: Mapping[str, str]) -> Answer:
        env = {
            "HOME": str(self.home),
            "USER": getpass.getuser(),
            "PATH": f"{self.tools}:/usr/bin:/bin",
            "GCE_METADATA_IP": self.metadata.address,
            "UV_CACHE_DIR": str(self.home / "cache"),
            "UV_PYTHON_DOWNLOADS": "never",
            **{f"{tool}_FIND_LINKS": str(self.index) for tool in ("UV", "PIP")},
            **{"UV_OFFLINE": "1", "PIP_NO_INDEX": "1"},
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


@pytest.mark.parametrize("there", [True, False], ids=["uv present", "uv absent"])
def test_uv_makes_the_environment_once_for_each_list_of_packages(machine: Machine, there: bool) -> None:
    assert UV is not None
    if there:
        machine.tools.joinpath("uv").symlink_to(UV)
    else:
        # What pip brings: a command that is uv, in a package of that name.
        machine.publish("uv", "1.0", {"scripts/uv": f'#!/bin/sh\nexec {UV} "$@"\n'})
    values = machine.send("greeting==1.0\nchips==1.0\n")
    assert machine.answer("prepare", values) == Answer(0, "READY", "made")
    assert machine.home.joinpath(".local/bin/uv").exists() is not there
    assert machine.python(values, "import sys, greeting, chips; print(*sys.version_info[:2], sep='.')") == PYTHON
    assert machine.answer("prepare", values) == Answer(0, "READY", "reused")

    machine.publish("greeting", "2.0", {"greeting.py": "VERSION = '2.0'\n"})
    changed = machine.send("greeting==2.0\nchips==1.0\n")
    assert machine.answer("prepare", changed) == Answer(0, "READY", "made")
    assert machine.python(changed, "import greeting; print(greeting.VERSION)") == "2.0"
    assert machine.python(values, "import greeting; print(greeting.VERSION)") == "1.0"


def test_an_environment_that_cannot_be_made_is_told_and_tried_again(machine: Machine) -> None:
    assert UV is not None
    machine.tools.joinpath("uv").symlink_to(UV)
    values = machine.send("greeting==3.0\nchips==1.0\n")
    failed = machine.answer("prepare", values)
    assert failed.word == "FAILED"
    assert failed.detail.startswith("environment: ")
    assert "greeting" in failed.detail
    machine.publish("greeting", "3.0", {"greeting.py": ""})
    assert machine.answer("prepare", values) == Answer(0, "READY", "made")


def test_a_host_without_uv_and_without_a_way_to_get_it_says_so(machine: Machine) -> None:
    failed = machine.answer("prepare", machine.send("greeting==1.0\nchips==1.0\n"))
    assert failed.word == "FAILED"
    assert "uv" in failed.detail


def test_code_that_arrived_damaged_is_refused(machine: Machine) -> None:
    values = machine.send("greeting==1.0\n")
    archive = machine.home / f".pod_job-{values['BUNDLE']}.tar.gz"
    archive.write_bytes(archive.read_bytes()[:-9])
    assert machine.answer("prepare", values).word == "FAILED"
    assert not (machine.home / ".pod_job" / "bundles" / values["BUNDLE"]).exists()


def test_versions_of_python_and_jax_are_told(machine: Machine) -> None:
    found = machine.answer("versions", {"PYTHON": sys.executable, "ENVIRONMENT": ""})
    assert found == Answer(0, "VERSIONS", f"{sys.version.split()[0]} {metadata.version('jax')}")
    assert machine.answer("versions", {"PYTHON": "", "ENVIRONMENT": "none"}).word == "UNKNOWN"


def test_the_rate_to_the_run_folder_is_measured_unless_a_job_runs(machine: Machine, tmp_path: Path) -> None:
    values = machine.send("greeting==1.0\n") | {"PYTHON": sys.executable}
    assert machine.answer("prepare", values).word == "READY"
    bundle = machine.home / ".pod_job" / "bundles" / values["BUNDLE"]
    (bundle / "pod_job").symlink_to(ROOT / "pod_job")
    run = tmp_path / "run with 'quotes' $(touch stolen)"
    values |= {"RUN": str(run), "WRITERS": "2", "OBJECTS": "1"}
    measured = machine.answer("bandwidth", values)
    assert measured.word == "MEASURED", measured
    assert decode(measured.detail, HostRate, "answer").bytes == 64 << 20
    assert [path for path in run.rglob("*") if path.is_file()] == []
    assert not list(tmp_path.rglob("stolen"))
    assert machine.answer("bandwidth", values | {"RUN": "/proc/run"}).word == "FAILED"
    with open(machine.home / ".pod_job" / "alive", "w") as alive:
        fcntl.flock(alive, fcntl.LOCK_EX)
        assert machine.answer("bandwidth", values).word == "BUSY"
