"""Eight CPU devices for every test, shape types checked at run time, and skips for missing optional tools."""

import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
# Most tests compile many small programs, each of which runs few times: compiling takes half as long, in jobs too.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
IMPORTED_FIRST = (
    *("beartype.claw", "jax.experimental.multihost_utils", "optax", "orbax.checkpoint", "rich.console", "scipy.stats"),
    *("torch", "transformers.modeling_utils"),
)
if "PYTEST_XDIST_WORKER" in os.environ:
    # What a module with checked shapes imports is compiled from its source each time: the large packages come before.
    for name in IMPORTED_FIRST:
        with suppress(ModuleNotFoundError):  # torch may be missing, which part of transformers imports
            importlib.import_module(name)


@pytest.fixture(scope="session")
def require() -> Callable[[bool, str], None]:
    """Returns `require(available, name)`: without it the test is skipped on a user's machine and fails in CI."""

    def check(available: bool, name: str) -> None:
        if available:
            return
        if os.environ.get("CI"):
            pytest.fail(f"needs {name}, which CI must have")
        pytest.skip(f"needs {name}")

    return check


@pytest.fixture(scope="session")
def torch_there(require: Callable[[bool, str], None]) -> None:
    require(importlib.util.find_spec("torch") is not None, "torch")


@pytest.fixture(scope="module", params=["local", "bucket"])
def new_folder(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, require: Callable[[bool, str], None]
) -> Iterator[Any]:
    """Yields a function that opens a new, empty run folder, first on this disk, then in the bucket emulator."""
    from sample_runs import folders  # only where a test asks for it: it imports much

    with folders(request.param, tmp_path_factory.mktemp("folders"), require) as opened:
        yield opened


@pytest.fixture
def proxy(tmp_path: Path, require: Callable[[bool, str], None], monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A bucket emulator behind a `faulty_bucket.Proxy`; failed requests are retried at once."""
    from faulty_bucket import faulty_bucket  # only where a test asks for it: it imports much

    from pod_job.storage import gcs_errors

    monkeypatch.setattr(gcs_errors, "FIRST_WAIT_S", 0.01)
    with faulty_bucket(tmp_path, require, monkeypatch.setenv) as server:
        yield server
