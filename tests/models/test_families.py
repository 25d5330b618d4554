"""Every family against Hugging Face's torch model: taps, built-in reference, packing, meshes and generation."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from test_models import apply, error, load

from pod_job.models.families import FAMILIES
from tools.tiny_model import write_tiny_model

LIMIT = 1e-5
SEQ = 20  # past the tiny models' windows of 8


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    @cache
    def write(family: str) -> Path:
        folder = tmp_path_factory.mktemp("tiny") / family
        return write_tiny_model(folder, family, layers=3, hidden=48, heads=6, seed=3)

    return write


@pytest.fixture(scope="module")
def truth(tiny: Callable[[str], Path], torch_there: None) -> Callable[[str], tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Token ids of two rows, and every tap of theirs by torch."""

    @cache
    def compute(family: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        from pod_job.checking.hf_reference import load_reference, run_reference

        ids = np.random.default_rng(0).integers(0, 256, (2, SEQ)).astype(np.int32)
        return ids, run_reference(load_reference(tiny(family)), ids)

    return compute


def far(found: dict[str, np.ndarray], expected: dict[str, Any]) -> dict[str, float]:
    """The taps that are not within the limit, by how far."""
    return {name: off for name in found if not (off := error(found[name], expected[name])) <= LIMIT}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tap_and_the_logits_equal_hugging_face(family: str, tiny, truth) -> None:
    ids, expected = truth(family)
    model, params = load(tiny(family), taps=["*"])
    with jax.disable_jit():  # what is compiled for one family serves all others of the same shapes
        found = apply(model, params, ids)
    assert found.keys() == expected.keys()
    assert far(found, expected) == {}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_built_in_decoder_equals_hugging_face(family: str, tiny, truth) -> None:
    from transformers import AutoConfig

    from pod_job.checking.hf_tensors import HfTensors
    from pod_job.checking.numpy_decoder import COVERED, numpy_taps
    from pod_job.checkpoints.checkpoint import read_checkpoint
    from pod_job.models.arch import read_arch_file
    from pod_job.models.weight_table import weight_table

    if family not in COVERED:
        return
    folder, (ids, expected) = tiny(family), truth(family)
    tensors = HfTensors(read_checkpoint(folder), weight_table(read_arch_file(folder / "config.json")))
    names, config = expected.keys() - {"logits"}, AutoConfig.from_pretrained(folder)
    found, _ = numpy_taps(config, tensors, list(ids), names, np.dtype("float32"), lambda x, w: x @ w.T)
    assert found.keys() == names
    assert far({name: taps.reshape(2, SEQ, -1) for name, taps in found.items()}, expected) == {}
