"""Imports point one way, and the launcher stays light: read from the source, and once seen in a real process."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted(path.relative_to(ROOT) for package in ("pod_job", "launch") for path in (ROOT / package).rglob("*.py"))
# The one file for each effect.
GOOGLE_CLOUD = {"pod_job/gcs.py"}
DISTRIBUTED = {"pod_job/distributed.py"}


def imported(path: Path) -> set[str]:
    """Dotted names of all modules a file imports, wherever in the file it does."""
    names = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def users_of(prefix: str, package: str = "") -> set[str]:
    """Files of `package` that import the module `prefix` or anything inside it."""
    return {
        path.as_posix()
        for path in SOURCES
        if path.parts[0].startswith(package)
        and any(name == prefix or name.startswith(f"{prefix}.") for name in imported(path))
    }


@pytest.mark.parametrize(
    ("package", "never"),
    [
        ("pod_job", "launch"),
        ("pod_job", "tools"),
        ("launch", "tools"),
        ("launch", "jax"),
        ("launch", "jaxlib"),
        ("launch", "flax"),
        ("", "jax._src"),
        ("", "jax.experimental.shard_map"),
    ],
)
def test_a_package_never_imports(package: str, never: str) -> None:
    assert users_of(never, package) == set()


def test_google_cloud_is_imported_in_one_place() -> None:
    assert users_of("google.cloud") == GOOGLE_CLOUD


def test_jax_distributed_is_started_in_one_place() -> None:
    callers = {
        path.as_posix()
        for path in SOURCES
        for node in ast.walk(ast.parse((ROOT / path).read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "jax.distributed.initialize"
    }
    assert callers == DISTRIBUTED


def test_subprocesses_are_started_in_one_place() -> None:
    starters = {
        path.as_posix()
        for path in SOURCES
        for node in ast.walk(ast.parse((ROOT / path).read_text()))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in {"subprocess.Popen", "subprocess.run", "subprocess.check_output", "os.system"}
    }
    assert starters == {"launch/shell.py"}


def test_the_launcher_loads_no_jax() -> None:
    modules = [path.with_suffix("").as_posix().replace("/", ".") for path in SOURCES if path.parts[0] == "launch"]
    program = f"import sys, {', '.join(modules)}; print({{'jax', 'jaxlib', 'flax', 'torch'}} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "set()"


def test_pod_job_itself_loads_nothing_heavy() -> None:
    program = "import sys, pod_job; print({'jax', 'numpy', 'pyarrow', 'hydra'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "set()"
