"""The published wheel and sdist: built, installed into an empty environment and run away from the sources."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import yaml

from launch.cloud.bundle import make_bundle
from pod_job import __version__
from pod_job.config.tasks import TasksConfig
from tools.tiny_model import write_tiny_model

ROOT = Path(__file__).parent.parent
TASKS = ROOT / "tests/data/arc/arc_sample.json"
NAME = f"tpu_pod_activations-{__version__}"


def call(argv: Sequence[str | Path], cwd: Path) -> str:
    outside = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "JAX_NUM_CPU_DEVICES")}
    process = subprocess.run([*map(str, argv)], cwd=cwd, env=outside, capture_output=True, text=True)
    assert process.returncode == 0, f"{argv}: {process.stderr[-2000:]}"
    return process.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    call([sys.executable, "-m", "hatchling", "build", "--directory", folder], ROOT)
    return folder


def test_wheel_and_sdist_hold_what_is_needed(built: Path) -> None:
    archive = zipfile.ZipFile(built / f"{NAME}-py3-none-any.whl")
    assert b"pod-job = launch.__main__:main" in archive.read(f"{NAME}.dist-info/entry_points.txt")
    wheel = set(archive.namelist())
    conf = {f"pod_job/conf/{path.relative_to(ROOT / 'conf').as_posix()}" for path in (ROOT / "conf").rglob("*.yaml")}
    assert wheel >= conf | {"pod_job/py.typed", "launch/py.typed", f"{NAME}.dist-info/licenses/LICENSE"}
    assert {name.split("/")[0] for name in wheel} == {"pod_job", "launch", f"{NAME}.dist-info"}
    with tarfile.open(built / f"{NAME}.tar.gz") as sdist:
        names = {member.name.removeprefix(f"{NAME}/") for member in sdist.getmembers()}
    assert names >= {"pyproject.toml", "constraints.txt", "LICENSE", "Makefile", "conf/job.yaml", "tests/conftest.py"}
    assert names >= {"CHANGELOG.md", "CONTRIBUTING.md"}
    assert not [name for name in names if name.startswith(("runs/", ".venv"))]


@pytest.mark.pod
@pytest.mark.timeout(900)
def test_an_empty_environment_runs_a_job(built: Path, tmp_path: Path) -> None:
    call([sys.executable, "-m", "venv", "env"], tmp_path)
    python = tmp_path / "env/bin/python"
    wheel = built / f"{NAME}-py3-none-any.whl"
    call([python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", wheel], tmp_path)
    call([python, "-m", "pip", "check"], tmp_path)
    model = write_tiny_model(tmp_path / "model", layers=2)
    job = ["mesh=2x2", "pod.hosts=2", "pod.devices_per_host=2", f"model.path={model}", f"tasks.path={TASKS}"]
    job += ["tasks.limit=8", "extract.layers=[1]", "extract.seq_len=128", "extract.too_long=tail"]
    call([tmp_path / "env/bin/pod-job", "run", *job, "storage.run_dir=run"], tmp_path)
    assert "sound" in call([tmp_path / "env/bin/pod-job", "verify", "run"], tmp_path)
    metadata = json.loads((tmp_path / "run/activations/metadata.json").read_text())
    assert (metadata["complete"], metadata["rows"], metadata["pod_job_version"]) == (True, 8, __version__)
    read = "from pod_job.dataset import ActivationDataset; print(ActivationDataset('run', 1).shape)"
    assert call([python, "-c", read], tmp_path).strip() == "(8, 64)"
    # An installed package ships the same code to hosts in the cloud as a checkout does.
    shipped = (
        "from launch.cloud.bundle import make_bundle; from pod_job.config.tasks import TasksConfig; "
        f"print(make_bundle(TasksConfig(path={str(TASKS)!r})).name)"
    )
    assert call([python, "-c", shipped], tmp_path).strip() == make_bundle(TasksConfig(path=str(TASKS))).name


def test_the_dockerfile_is_sound(tmp_path: Path, require: Callable[[bool, str], None]) -> None:
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    require(hadolint is not None, "hadolint")
    assert hadolint is not None
    call([hadolint, "tools/docker/Dockerfile"], ROOT)
    (tmp_path / "Dockerfile").write_text("FROM python\nRUN pip install numpy\n")
    assert subprocess.run([hadolint, tmp_path / "Dockerfile"], capture_output=True).returncode == 1


def test_the_dockerfile_copies_what_is_there_and_installs_extras_that_exist() -> None:
    text = (ROOT / "tools/docker/Dockerfile").read_text()
    copied = [word for line in text.splitlines() if line.startswith("COPY ") for word in line.split()[1:-1]]
    assert [name for name in copied if not name.startswith(("-", "/")) and not (ROOT / name).exists()] == []
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    words = text.split()
    assert {words[i + 1] for i, word in enumerate(words) if word == "--extra"} <= set(extras)


def test_pre_commit_runs_what_lint_runs() -> None:
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    lint = (ROOT / "Makefile").read_text().partition("\nlint:")[2].partition("\n\n")[0]
    for tool in ("ruff check", "ruff format", "pyright"):
        assert f".venv/bin/{tool}" in hooks
        assert f"$(BIN)/{tool}" in lint


def test_the_changelog_has_this_version() -> None:
    assert f"\n## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_workflow_runs_the_ci_script_on_supported_pythons() -> None:
    job = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]["test"]
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert os.access(ROOT / ".ci/run", os.X_OK)
    versions = [step["with"]["python-version"].split() for step in job["steps"] if "with" in step]
    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
    assert versions
    assert {f"Programming Language :: Python :: {version}" for version in versions[0]} <= set(classifiers)
