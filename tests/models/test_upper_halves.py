"""bfloat16 weights kept as integers are the float32 values that they stand for, and a job generates the same."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pod_job.config.load import load
from pod_job.models.bits import HALF
from pod_job.models.mesh import make_mesh
from pod_job.models.upper_halves import ROWS_TOGETHER, logits_by_rows, upper_halves, whole
from pod_job.planning.inputs import read_inputs
from pod_job.programs import load_model
from tools.tiny_model import write_tiny_model


def test_every_bfloat16_number_is_itself_again() -> None:
    numbers = jnp.asarray(np.arange(1 << 16, dtype=np.uint16).view(ml_dtypes.bfloat16))
    found, expected = np.asarray(whole(upper_halves(numbers))), np.asarray(numbers).astype(np.float32)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("vocabulary", [7, ROWS_TOGETHER, ROWS_TOGETHER + 5])
def test_logits_by_rows_are_the_product(vocabulary: int) -> None:
    rng = np.random.default_rng(3)
    weights = jnp.asarray(rng.normal(size=(vocabulary, 16)), jnp.bfloat16)
    x = rng.normal(size=(3, 16)).astype(np.float32)
    expected = x @ np.asarray(weights).astype(np.float32).T
    np.testing.assert_allclose(jax.jit(logits_by_rows)(x, upper_halves(weights)), expected, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with layers of two kinds whose checkpoint is bfloat16, with one matrix in float32."""
    folder = write_tiny_model(tmp_path_factory.mktemp("model"), "qwen3_5_text", layers=2)
    file = folder / "model.safetensors"
    tensors = {
        name: tensor if "k_proj" in name else tensor.astype(ml_dtypes.bfloat16)
        for name, tensor in load_file(file).items()
    }
    save_file(tensors, file, {"format": "pt"})
    return folder


def loaded(model: Path, run_dir: Path, **changes: Any) -> tuple[Any, Any]:
    values = {"model.path": model, "model.dtype": "float32", "tasks": "arc_sample", "extract.seq_len": 64}
    values |= {"extract.too_long": "tail", "storage.run_dir": run_dir, "pod.devices_per_host": 8, "mesh.data": 8}
    values |= changes
    inputs = read_inputs(load([f"{key}={value}" for key, value in values.items()]))
    return load_model(inputs, make_mesh(inputs.config.mesh))


def test_a_float32_job_that_generates_keeps_bfloat16_matrices_as_they_are(model: Path, tmp_path: Path) -> None:
    decoder, whole_params = loaded(model, tmp_path / "r")
    _, params = loaded(model, tmp_path / "r", mode="generate")
    halves = {name for name, weight in params["params"].items() if weight.dtype == HALF}
    assert {"q", "v", "o", "attn_gate", "delta_k", "delta_gate", "delta_o", "down"} <= halves
    assert not {"k", "attn_norm"} & halves
    assert all(weight.dtype == jnp.float32 for weight in whole_params["params"].values())
    ids = jnp.arange(1, 65).reshape(8, 8)
    apply = jax.jit(lambda params: decoder.apply(params, ids, return_activations=True, return_logits=False)[1])
    shared = {"params": {name: params["params"][name] for name in whole_params["params"]}}
    for name, expected in apply(whole_params).items():
        np.testing.assert_array_equal(apply(shared)[name], expected)


def test_a_bfloat16_job_keeps_its_weights(model: Path, tmp_path: Path) -> None:
    _, params = loaded(model, tmp_path / "r", **{"mode": "generate", "model.dtype": "bfloat16"})
    assert all(weight.dtype == jnp.bfloat16 for weight in params["params"].values())
