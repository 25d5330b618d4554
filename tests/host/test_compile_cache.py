"""The persistent compilation cache: what was compiled once is compiled by no later start, here or in a bucket."""

from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from sample_runs import folders

from pod_job.host.compile_cache import compile_cache

HIT = "/jax/compilation_cache/cache_hits"


@pytest.fixture
def hits() -> Iterator[list[str]]:
    heard: list[str] = []
    listen = lambda event, **_: heard.append(event) if event == HIT else None  # noqa: E731
    jax.monitoring.register_event_listener(listen)
    yield heard
    jax.monitoring.unregister_event_listener(listen)


def compile_anew(url: str | None) -> None:
    """As a process that has just started would."""
    jax.clear_caches()
    jax.jit(lambda x: jnp.tanh(x @ x).sum()).lower(jnp.ones((4, 4))).compile()  # jax latches that there is no cache
    with compile_cache(url):
        jax.jit(lambda x: jnp.sin(x @ x).sum()).lower(jnp.ones((8, 8))).compile()


@pytest.mark.parametrize("kind", ["local", "bucket"])
def test_the_second_start_compiles_nothing(
    kind: str, tmp_path: Path, require: Callable[[bool, str], None], hits: list[str]
) -> None:
    with folders(kind, tmp_path, require) as new_folder:
        url = new_folder().url
        compile_anew(None)
        compile_anew(url)
        assert not hits
        compile_anew(url)
        assert hits
