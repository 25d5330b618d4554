"""Folders are layers, imports point down, and the launcher stays light."""

import ast
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted(path.relative_to(ROOT) for package in ("pod_job", "launch") for path in (ROOT / package).rglob("*.py"))
# The only files that may have these effects.
GOOGLE_CLOUD = {"pod_job/storage/gcs.py"}
DISTRIBUTED = {"pod_job/host/rendezvous.py"}

LAYERS = {
    "pod_job": (
        "entry",
        "errors",
        "units",
        "environment",
        "terminal",
        "progress",
        "config",
        "storage",
        "formats",
        "models",
        "checkpoints",
        "prompts",
        "run_folder",
        "planning",
        "host",
        "extraction",
        "generation",
        "reading",
        "training",
        "finishing",
        "checking",
        "preflight",
        "interop",
        "report",
        "commands",
        "programs",
        "job",
        "notebook",
        "document",
    ),
    "launch": (
        "verb_table",
        "without_torch",
        "clock",
        "shell",
        "host_commands",
        "hosts_file",
        "slices",
        "local",
        "preflight",
        "reference",
        "cause",
        "view",
        "merging",
        "local_job",
        "local_slices",
        "cloud",
        "dry_run",
        "manifests",
        "doctor",
        "job_config",
        "verbs",
        "dispatch",
        "__main__",
    ),
}
"""Folders and files of a package from the bottom up: each imports only what stands before it, and itself."""
ENTRY_POINTS = {
    "pod_job/__init__.py",
    "pod_job/__main__.py",
    "pod_job/report/__main__.py",
    "pod_job/preflight/__main__.py",
    "pod_job/checking/__main__.py",
    "pod_job/convert.py",
    "pod_job/dataset.py",
    "pod_job/diff.py",
    "pod_job/export.py",
    "pod_job/export_sae_lens.py",
    "pod_job/hooks.py",
    "pod_job/import_pickles.py",
    "pod_job/inspect.py",
    "pod_job/measure_bucket.py",
    "pod_job/merge.py",
    "pod_job/shuffle.py",
    "pod_job/verify.py",
}
"""Public addresses and `python -m pod_job.NAME`: imports of what lies in the layers, and nothing else."""


@cache
def syntax(path: Path) -> list[ast.AST]:
    """Returns all nodes of a file's syntax tree; parsed once, since many tests walk all files."""
    return list(ast.walk(ast.parse((ROOT / path).read_text())))


@cache
def imported(path: Path) -> set[str]:
    """Returns the dotted names of all modules that a file imports, at its top or inside functions."""
    names = set()
    for node in syntax(path):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def users_of(prefix: str, package: str = "") -> set[str]:
    """Returns the files of `package` that import the module `prefix` or anything inside it."""
    return {
        path.as_posix()
        for path in SOURCES
        if path.parts[0].startswith(package)
        and any(name == prefix or name.startswith(f"{prefix}.") for name in imported(path))
    }


def module_of(path: Path) -> str:
    return path.with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")


def layer_of(path: Path) -> str:
    return path.parts[1].removesuffix(".py")


def test_every_file_is_in_a_layer_or_an_entry_point() -> None:
    outside = {
        path.as_posix()
        for path in SOURCES
        if len(path.parts) > 1 and layer_of(path) not in LAYERS[path.parts[0]] and path.as_posix() not in ENTRY_POINTS
    }
    assert outside - {"launch/__init__.py"} == set()


def test_imports_point_down() -> None:
    upward = []
    for path in SOURCES:
        order = LAYERS[path.parts[0]]
        if path.as_posix() in ENTRY_POINTS or layer_of(path) not in order:
            continue
        for name in sorted(imported(path)):
            package, _, rest = name.partition(".")
            target = rest.split(".")[0]
            if package == path.parts[0] and target in order and order.index(target) > order.index(layer_of(path)):
                upward.append(f"{path} imports {name}")
    assert upward == []


def test_nothing_imports_an_entry_point() -> None:
    for entry in ENTRY_POINTS - {"pod_job/__init__.py"}:
        assert users_of(module_of(Path(entry))) == set()


def test_files_form_no_import_cycle() -> None:
    modules = {module_of(path): path for path in SOURCES if path.name != "__init__.py"}
    dependencies = {
        name: {
            module for target in imported(path) for module in (target, target.rpartition(".")[0]) if module in modules
        } - {name}
        for name, path in modules.items()
    }  # fmt: skip
    list(TopologicalSorter(dependencies).static_order())  # raises CycleError, which names the files


def test_an_entry_point_defines_nothing() -> None:
    for entry in ENTRY_POINTS - {"pod_job/__main__.py"}:
        body = ast.parse((ROOT / entry).read_text()).body
        assert not [node for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)]


@pytest.mark.parametrize(
    ("package", "never"),
    [
        ("pod_job", "launch"),
        ("pod_job", "tools"),
        ("launch", "tools"),
        ("launch", "pod_job.host"),
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
        for node in syntax(path)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "jax.distributed.initialize"
    }
    assert callers == DISTRIBUTED


def test_subprocesses_are_started_in_three_places() -> None:
    # Commands of the launcher, the process in which chat templates of strangers are rendered, and the one in which
    # libtpu, which reads its flags when it is loaded, writes out a kernel.
    starters = {
        path.as_posix()
        for path in SOURCES
        for node in syntax(path)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in {"subprocess.Popen", "subprocess.run", "subprocess.check_output", "os.system"}
    }
    assert starters == {"launch/shell.py", "pod_job/prompts/chat.py", "pod_job/preflight/kernel_bundles.py"}


def test_the_launcher_loads_no_jax() -> None:
    modules = [path.with_suffix("").as_posix().replace("/", ".") for path in SOURCES if path.parts[0] == "launch"]
    program = f"import sys, {', '.join(modules)}; print({{'jax', 'jaxlib', 'flax', 'torch'}} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "set()"


def test_pod_job_itself_loads_nothing_heavy() -> None:
    program = "import sys, pod_job; print({'jax', 'numpy', 'pyarrow', 'hydra'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "set()"
