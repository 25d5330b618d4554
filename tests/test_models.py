"""The model against Hugging Face torch: every site of every layer, and the program that computes it."""

import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import GOLDENS
from safetensors.numpy import load_file

from pod_job.models import create_model_with_hooks
from pod_job.models.decoder import Decoder
from pod_job.models.weight_table import weight_table
from pod_job.weights import check_checkpoint, load_params, read_checkpoint

CASES = sorted(path for path in GOLDENS.iterdir() if path.is_dir())
LIMIT = 1e-4


def load(folder: Path, dtype: str = "float32", **request) -> tuple[Decoder, dict]:
    model = create_model_with_hooks(json.loads((folder / "config.json").read_text()), dtype=jnp.dtype(dtype), **request)
    table, checkpoint = weight_table(model.arch), read_checkpoint(folder)
    check_checkpoint(checkpoint, table)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return model, load_params(checkpoint, table, model.dtype, dict.fromkeys(table, here))


def apply(model: Decoder, params: dict, input_ids: np.ndarray, **options) -> dict[str, np.ndarray]:
    logits, activations = model.apply(params, jnp.asarray(input_ids), return_activations=True, **options)
    outputs = activations if logits is None else activations | {"logits": logits}
    return {name: np.asarray(value, np.float32) for name, value in outputs.items()}


def error(found: np.ndarray, truth: np.ndarray) -> float:
    """The largest relative L2 error of any vector."""
    return float((np.linalg.norm(found - truth, axis=-1) / np.linalg.norm(truth, axis=-1)).max())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("taps", [["*"], ["layer_0", "layer_1.q", "layer_2"], ["layer_3_norm"]], ids=str)
def test_every_tap_and_the_logits_equal_hugging_face(case: Path, taps: list[str]) -> None:
    expected = load_file(case / "expected.safetensors")
    model, params = load(case, taps=taps)
    found = apply(model, params, expected["input_ids"])
    assert found.keys() == {tap.name for tap in model.taps} | {"logits"}
    assert {
        name: error(value, expected[name]) for name, value in found.items() if error(value, expected[name]) > LIMIT
    } == {}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bfloat16_keeps_the_direction(case: Path) -> None:
    expected = load_file(case / "expected.safetensors")
    model, params = load(case, "bfloat16", layers_to_extract=None)
    for name, found in apply(model, params, expected["input_ids"]).items():
        truth = expected[name]
        cosine = (found * truth).sum(-1) / np.linalg.norm(found, axis=-1) / np.linalg.norm(truth, axis=-1)
        assert cosine.min() >= 0.999, name


@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_live_against_torch(family: str, tmp_path: Path, torch_there: None) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from tools.goldens import run_reference
    from tools.tiny_model import write_tiny_model

    folder = write_tiny_model(tmp_path / family, family, layers=5, heads=8, kv_heads=2, head_dim=16, seed=3)
    input_ids = np.random.default_rng(0).integers(0, 256, (3, 40))
    reference = run_reference(
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), torch.tensor(input_ids)
    )
    model, params = load(folder, taps=["*"])
    for name, found in apply(model, params, input_ids).items():
        assert error(found, reference[name]) <= LIMIT, name


def test_smollm2_equals_hugging_face(smollm2: Path) -> None:
    expected = load_file(GOLDENS / "smollm2_135m.safetensors")
    model, params = load(smollm2, taps=["layer_30_norm"], layers_to_extract=range(30))
    found = apply(model, params, expected["input_ids"])
    assert error(found.pop("logits")[:, -1], expected["logits"]) <= LIMIT
    for name, value in found.items():
        assert error(value, expected[name]) <= LIMIT, name


def test_taps_do_not_depend_on_the_other_taps() -> None:
    """One loop per stretch of layers, or one loop with buffers: the same vectors."""
    model, params = load(CASES[0], taps=["*"])
    ids = np.arange(24).reshape(2, 12)
    together = apply(model, params, ids)
    for tap in model.taps:
        alone, _ = load(CASES[0], taps=[tap.name])
        np.testing.assert_allclose(apply(alone, params, ids)[tap.name], together[tap.name], rtol=1e-5, atol=1e-6)


def program(model: Decoder, params: dict, **options) -> jax.stages.Compiled:
    ids = jnp.zeros((2, 64), jnp.int32)
    return (
        jax.jit(lambda params, ids: model.apply(params, ids, return_activations=True, **options))
        .lower(params, ids)
        .compile()
    )


def test_nothing_after_the_last_tap_is_computed() -> None:
    """Layer 0 alone is about a third of the work of three layers, and no logits are computed."""
    first, params = load(CASES[0], layers_to_extract=[0])
    last, _ = load(CASES[0], layers_to_extract=[2])
    flops = [program(model, params, return_logits=False).cost_analysis()["flops"] for model in (first, last)]
    with_logits = program(first, params).cost_analysis()["flops"]
    assert flops[0] < with_logits
    assert flops[0] < 0.6 * flops[1] or "while" in program(last, params, return_logits=False).as_text()


def test_only_chosen_taps_are_held(tmp_path: Path) -> None:
    """Temporary memory of a deep model does not grow with its depth."""
    from tools.tiny_model import write_tiny_model

    sizes = []
    for layers in (8, 32):
        model, params = load(write_tiny_model(tmp_path / str(layers), layers=layers), layers_to_extract=[1, layers - 1])
        sizes.append(program(model, params, return_logits=False).memory_analysis().temp_size_in_bytes)
    assert sizes[1] <= 1.1 * sizes[0]


def test_packed_prompts_equal_the_prompts_alone() -> None:
    model, params = load(CASES[0], layers_to_extract=None)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 90, length) for length in (5, 3, 4)]
    row = np.concatenate([*prompts, [0, 0]])[None]
    segments = np.array([[1] * 5 + [2] * 3 + [3] * 4 + [0] * 2])
    positions = np.concatenate([np.arange(n) for n in (5, 3, 4, 2)])[None]
    packed = apply(
        model, params, row, segment_ids=jnp.asarray(segments), positions=jnp.asarray(positions), return_logits=False
    )
    for name, found in packed.items():
        for prompt, start in zip(prompts, (0, 5, 8), strict=True):
            alone = apply(model, params, prompt[None])[name][0]
            np.testing.assert_allclose(found[0, start : start + len(prompt)], alone, rtol=1e-5, atol=1e-5)


def test_the_users_document_runs_as_written() -> None:
    config = json.loads((CASES[0] / "config.json").read_text())
    _, params = load(CASES[0])
    input_ids = jnp.arange(12).reshape(1, 12)
    model = create_model_with_hooks(config, layers_to_extract=[0, 2])
    logits, activations = model.apply(params, input_ids, return_activations=True)
    assert set(activations) == {"layer_0", "layer_2"}
    assert activations["layer_2"].shape == (1, 12, config["hidden_size"])
    np.testing.assert_array_equal(model.apply(params, input_ids), logits)
    assert jax.tree.map(jnp.shape, model.init(jax.random.key(0), input_ids)) == jax.tree.map(jnp.shape, params)


@pytest.fixture(scope="session")
def smollm2(require: Callable[[bool, str], None]) -> Path:
    folder = Path("runs/models/SmolLM2-135M-Instruct")
    require(folder.is_dir(), "the demo model (make model)")
    return folder
