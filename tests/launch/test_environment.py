"""Hosts without a way out get their environment, Python included, as one archive through a bucket."""

import io
import json
import tarfile
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from script_host import PYPROJECT, PYTHON, UV, Machine, machine
from strict_bucket import BUCKET, StrictBucket

from launch.cloud import environment
from launch.cloud.bundle import Bundle
from launch.cloud.environment import place_environment
from launch.cloud.remote import Answer
from pod_job.config.load import load
from pod_job.config.schema import JobConfig
from pod_job.errors import JobError

__all__ = ["machine"]  # the fixture
# Stands for python-build-standalone, which is 30 MB: it runs from any folder, with the packages beside it.
RELOCATABLE = f"""\
#!/bin/sh
here=$(cd "$(dirname "$0")/.." && pwd)
PYTHONPATH="$here/lib/python{PYTHON}/site-packages" exec {{python}} "$@"
"""
SYSCONFIG = b"# system configuration generated and used by the sysconfig module\nbuild_time_vars = {}\n"


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[StrictBucket]:
    server = StrictBucket()
    with server.serving(monkeypatch.setenv):
        yield server


@pytest.fixture
def workstation(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A workstation with uv, an index of packages and a server of Pythons; the host has neither."""
    requirements = {name: tmp_path / name for name in ("pyproject.toml", "constraints.txt")}
    requirements["pyproject.toml"].write_text(PYPROJECT)
    requirements["constraints.txt"].write_text("greeting==1.0\nchips==1.0\n")
    monkeypatch.setattr(environment, "requirements_of", lambda package: requirements)
    monkeypatch.setenv("UV_PYTHON_DOWNLOADS_JSON_URL", str(publish_python(tmp_path, machine)))
    monkeypatch.setenv("UV_FIND_LINKS", str(machine.index))
    monkeypatch.setenv("UV_NO_INDEX", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    return machine


def publish_python(root: Path, machine: Machine) -> Path:
    """Writes an archive of a Python, and the list of downloads that has it, as uv reads it; returns the list."""
    name = f"cpython-{PYTHON}.7-linux-x86_64-gnu"
    text = RELOCATABLE.format(python=(machine.tools / "python3").resolve()).encode()
    with tarfile.open(root / f"{name}.tar.gz", "w:gz") as tar:
        for path, content, mode in (
            (f"python/bin/python{PYTHON}", text, 0o755),
            (f"python/lib/python{PYTHON}/_sysconfigdata__linux_x86_64-linux-gnu.py", SYSCONFIG, 0o644),
        ):
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(content), mode
            tar.addfile(entry, io.BytesIO(content))
    major, minor = map(int, PYTHON.split("."))
    archive = root / f"{name}.tar.gz"
    arch = {"family": "x86_64", "variant": None}
    facts = {"name": "cpython", "arch": arch, "os": "linux", "libc": "gnu", "prerelease": "", "variant": None}
    facts |= {"major": major, "minor": minor, "patch": 7, "url": archive.as_uri(), "build": "20261110"}
    downloads = root / "downloads.json"
    downloads.write_text(json.dumps({name: facts | {"sha256": sha256(archive.read_bytes()).hexdigest()}}))
    return downloads


def config() -> JobConfig:
    return load(["experiment=v5e64", "storage.run_dir=gs://b/run", f"cloud.environments=gs://{BUCKET}/environments"])


def test_an_archive_is_made_once_and_hosts_need_nothing_else(workstation: Machine, bucket: StrictBucket) -> None:
    lines: list[str] = []
    sent = workstation.send("greeting==1.0\nchips==1.0\n")
    bundle = Bundle(sent["BUNDLE"], b"", sent["ENVIRONMENT"])
    archive = place_environment(config(), bundle, lines.append)
    assert [line.partition(":")[0] for line in lines] == ["environment"] * 2
    assert place_environment(config(), bundle, lines.append) == archive
    assert len(lines) == 2
    assert len(bucket.objects) == 1
    other = place_environment(config(), Bundle(sent["BUNDLE"], b"", "b" * 16), lines.append)
    assert other["ENVIRONMENT_URL"] != archive["ENVIRONMENT_URL"]

    # Neither uv, nor pip, nor an index.
    for folder in (workstation.tools, workstation.index):
        for path in folder.iterdir():
            path.unlink()
    values = sent | archive
    assert workstation.answer("prepare", values, STORAGE_EMULATOR_HOST=bucket.url) == Answer(0, "READY", "made")
    program = "import sys, greeting, chips; print(greeting.VERSION, *sys.version_info[:2])"
    assert workstation.python(values, program) == f"1.0 {PYTHON.replace('.', ' ')}"
    assert workstation.answer("prepare", values) == Answer(0, "READY", "reused")


@pytest.mark.parametrize("fault", ["cut", "changed", "gone", "does not run"])
def test_an_archive_that_is_no_environment_is_told_and_tried_again(
    fault: str, machine: Machine, bucket: StrictBucket, tmp_path: Path
) -> None:
    def publish(script: str) -> dict[str, str]:
        made = tmp_path / sha256(script.encode()).hexdigest() / "bin"
        made.mkdir(parents=True)
        made.joinpath("python").write_text(script)
        made.joinpath("python").chmod(0o755)
        environment.write_archive(made.parent, tmp_path / "archive")
        content = (tmp_path / "archive").read_bytes()
        bucket.store("folder/archive", content, None, None)
        values = {"ENVIRONMENT_URL": f"/storage/v1/b/{BUCKET}/o/folder%2Farchive?alt=media"}
        return values | {"ENVIRONMENT_SHA256": sha256(content).hexdigest()}

    sound = publish("#!/bin/sh\nexit 0\n")
    content = bucket.objects["folder/archive"].content
    broken = sound
    if fault == "cut":
        bucket.store("folder/archive", content[:-9], None, None)
    elif fault == "changed":
        bucket.store("folder/archive", content[:-9] + b"x" + content[-8:], None, None)
    elif fault == "gone":
        del bucket.objects["folder/archive"]
    else:
        broken = publish("#!/bin/sh\necho \"libc.so.6: version 'GLIBC_2.38' not found\" >&2\nexit 1\n")
    values = machine.send("greeting==1.0\n")
    failed = machine.answer("prepare", values | broken, STORAGE_EMULATOR_HOST=bucket.url)
    assert failed.word == "FAILED"
    assert failed.detail.startswith("environment: ")
    assert ("GLIBC_2.38" in failed.detail) == (fault == "does not run")
    bucket.store("folder/archive", content, None, None)
    again = machine.answer("prepare", values | sound, STORAGE_EMULATOR_HOST=bucket.url)
    assert again == Answer(0, "READY", "made")


@pytest.mark.parametrize("there", [True, False], ids=["uv present", "uv absent"])
def test_hosts_that_cannot_reach_an_index_are_told_of_the_archive(machine: Machine, there: bool) -> None:
    if there:
        assert UV is not None
        machine.tools.joinpath("uv").symlink_to(UV)
    nowhere = {"UV_OFFLINE": "0", "UV_FIND_LINKS": "", "UV_HTTP_RETRIES": "0", "PIP_NO_INDEX": "0", "PIP_RETRIES": "0"}
    nowhere |= dict.fromkeys(("UV_DEFAULT_INDEX", "PIP_INDEX_URL"), "http://127.0.0.1:9/")
    failed = machine.answer("prepare", machine.send("greeting==1.0\nchips==1.0\n"), **nowhere)
    assert failed.word == "FAILED"
    assert failed.detail.endswith("hosts without a way out take it from cloud.environments=gs://bucket/folder")


def test_what_uv_cannot_make_is_one_line(workstation: Machine, bucket: StrictBucket) -> None:
    for path in workstation.index.iterdir():
        path.unlink()
    with pytest.raises(JobError, match=r"^cloud\.environments: uv pip install: .*(greeting|chips)==1.0[^\n]*$"):
        place_environment(config(), Bundle("a" * 64, b"", "e" * 16), lambda line: None)
    assert not bucket.objects


def test_without_uv_the_fix_is_named(monkeypatch: pytest.MonkeyPatch, bucket: StrictBucket) -> None:
    monkeypatch.setattr(environment.shutil, "which", lambda *_, **__: None)
    with pytest.raises(JobError, match=r"^cloud\.environments: uv is not installed here.*; pip install uv$"):
        place_environment(config(), Bundle("a" * 64, b"", "e" * 16), lambda line: None)


@pytest.mark.parametrize("more", ["cloud.environments=/shared", "cloud.environments=gs://", "cloud.python=python3"])
def test_a_folder_that_hosts_could_not_or_would_not_use_is_refused(more: str) -> None:
    with pytest.raises(JobError, match=r"^cloud\.environments="):
        load(["experiment=v5e64", "storage.run_dir=gs://b/run", "cloud.environments=gs://b/e", more])
