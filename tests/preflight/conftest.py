"""A preflight reports on programs as a pod compiles them."""

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(scope="package", autouse=True)
def whole_compilation() -> Iterator[None]:
    """Has XLA optimize as it does for users, in this process and in those that tests start."""
    name = "jax_disable_most_optimizations"
    before = jax.config.read(name)
    jax.config.update(name, False)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(name.upper())
        yield
    jax.config.update(name, before)
