"""Eight CPU devices for every test, shape types checked while they run, and what to do without an optional tool."""

import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"

GOLDENS = Path(__file__).parent / "goldens"


@pytest.fixture(scope="session")
def require() -> Callable[[bool, str], None]:
    """`require(there, what)`: skips the test on a user's machine that lacks something, fails it in CI."""

    def check(there: bool, what: str) -> None:
        if there:
            return
        if os.environ.get("CI"):
            pytest.fail(f"needs {what}, which CI must have")
        pytest.skip(f"needs {what}")

    return check


@pytest.fixture(scope="session")
def torch_there(require: Callable[[bool, str], None]) -> None:
    require(importlib.util.find_spec("torch") is not None, "torch")


@pytest.fixture
def proxy(tmp_path: Path, require: Callable[[bool, str], None], monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A bucket emulator behind a `faulty_bucket.Proxy`; what fails is tried again at once."""
    from faulty_bucket import faulty_bucket  # only where a test asks for it: it imports much

    from pod_job.storage import gcs_errors

    monkeypatch.setattr(gcs_errors, "FIRST_WAIT_S", 0.01)
    with faulty_bucket(tmp_path, require, monkeypatch.setenv) as server:
        yield server
