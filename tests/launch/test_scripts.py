"""The scripts of a host, run by a real bash with a real metadata server and real uv and pip; only ssh is left out."""

import fcntl
import sys
from importlib import metadata
from pathlib import Path

import pytest
from script_host import PYTHON, UV, Machine, machine

from launch.cloud.remote import Answer
from pod_job.formats.records import decode
from pod_job.run_folder.bucket_rate import HostRate

__all__ = ["machine"]  # the fixture
ROOT = Path(__file__).parent.parent.parent


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
    assert machine.home.joinpath(".pod_job/tools/bin/uv").exists() is not there
    assert machine.python(values, "import sys, greeting, chips; print(*sys.version_info[:2], sep='.')") == PYTHON
    assert machine.answer("prepare", values) == Answer(0, "READY", "reused")

    machine.publish("greeting", "2.0", {"greeting.py": "VERSION = '2.0'\n"})
    changed = machine.send("greeting==2.0\nchips==1.0\n")
    assert machine.answer("prepare", changed) == Answer(0, "READY", "made")
    assert machine.python(changed, "import greeting; print(greeting.VERSION)") == "2.0"
    assert machine.python(values, "import greeting; print(greeting.VERSION)") == "1.0"
    assert machine.answer("clear", {"LEAVING_S": "0", "RUN": "gs://b/run"}) == Answer(0, "CLEARED", "")
    assert list(machine.home.glob(".pod_job*")) == []


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
