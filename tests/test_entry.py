"""A Python that cannot run the program is told so in one line, whichever way the program is started."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_imports import ENTRY_POINTS

ROOT = Path(__file__).parent.parent
COMMANDS = ["launch", "launch plan experiment=demo", "pod_job experiment=demo", "pod_job.verify runs/first"]
COMMANDS += ["pod_job.report runs/first", "pod_job.preflight --help"]
FIX = "use `make install` and `source .venv/bin/activate`"
ENTRIES = sorted(
    {"launch/__main__.py", "launch/__init__.py", "pod_job/entry.py"} | ENTRY_POINTS - {"pod_job/dataset.py"}
)


def python(version: str) -> str | None:
    """The program of a Python of this version, wherever it is usual to have several."""
    managed = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    return str(managed[-1]) if managed else shutil.which(f"python{version}")


def refusal(*command: str) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    return done.stderr.strip()


@pytest.mark.parametrize("command", COMMANDS)
def test_an_old_python_is_refused(command: str) -> None:
    old = python("3.10")
    if old is None:
        pytest.skip("needs Python 3.10")
    shown = refusal(old, "-m", *command.split())
    assert re.fullmatch(rf"error: pod-job needs Python 3\.11 or newer, this is 3\.10\.\d+; {re.escape(FIX)}", shown)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_python_without_the_packages_is_refused(command: str) -> None:
    bare = [sys.executable, "-S"]  # this one, without its site-packages
    shown = refusal(*bare, "-m", *command.split())
    assert shown == f"error: pod-job needs the package hydra, which {sys.executable} does not have; {FIX}"


def test_another_bare_python_is_refused() -> None:
    other = next(filter(None, map(python, ("3.12", "3.13"))), None)
    if other is None or subprocess.run([other, "-c", "import hydra"], capture_output=True).returncode == 0:
        pytest.skip("needs a Python 3.12 or 3.13 without hydra-core")
    assert "needs the package hydra" in refusal(other, "-m", "launch", "plan")


@pytest.mark.parametrize("path", ENTRIES)
def test_an_entry_point_is_read_by_an_old_python(path: str) -> None:
    ast.parse((ROOT / path).read_text(), feature_version=(3, 8))
