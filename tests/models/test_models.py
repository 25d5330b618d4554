"""The model against Hugging Face torch: every site of every layer, and the program that computes it."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_models import GOLDENS
from safetensors.numpy import load_file, save_file

from pod_job.checkpoints.checkpoint import check_checkpoint, read_checkpoint
from pod_job.checkpoints.load import load_params
from pod_job.models import create_model_with_hooks, decoder, layer_loop
from pod_job.models.decoder import Decoder
from pod_job.models.rope import Rope
from pod_job.models.taps import INNER_SITES, Tap
from pod_job.models.weight_table import weight_table

CASES = sorted(path for path in GOLDENS.iterdir() if path.is_dir())
LIMIT = 1e-4


def load(folder: Path, dtype: str = "float32", **request) -> tuple[Decoder, dict]:
    model = create_model_with_hooks(json.loads((folder / "config.json").read_text()), dtype=jnp.dtype(dtype), **request)
    table, checkpoint = weight_table(model.arch), read_checkpoint(folder)
    check_checkpoint(checkpoint, table)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return model, load_params(checkpoint, table, model.dtype, dict.fromkeys(table, here))


def apply(
    model: Decoder, params: dict, input_ids: np.ndarray, *, return_logits: bool = True, **arrays
) -> dict[str, np.ndarray]:
    def outputs(params: dict, input_ids: jax.Array, arrays: dict) -> dict[str, jax.Array]:
        logits, activations = model.apply(
            params, input_ids, return_activations=True, return_logits=return_logits, **arrays
        )
        return activations if logits is None else activations | {"logits": logits}

    # The compiler's last stage is most of a tiny model's time, and optimises what is run once.
    run = jax.jit(outputs, compiler_options={"xla_backend_optimization_level": 0})
    found = run(params, jnp.asarray(input_ids), {name: jnp.asarray(a) for name, a in arrays.items()})
    return {name: np.asarray(value, np.float32) for name, value in found.items()}


def error(found: np.ndarray, truth: np.ndarray) -> float:
    """The largest relative L2 error of any vector."""
    return float((np.linalg.norm(found - truth, axis=-1) / np.linalg.norm(truth, axis=-1)).max())


def cosine(found: np.ndarray, truth: np.ndarray) -> float:
    """The smallest cosine of any vector with the true one."""
    lengths = np.linalg.norm(found, axis=-1) * np.linalg.norm(truth, axis=-1)
    return float(((found * truth).sum(-1) / lengths).min())


def all_in_one_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes few layers take the way of many: one loop that writes taps into buffers."""
    monkeypatch.setattr(layer_loop, "MOST_PIECES", 0)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_tap_and_the_logits_equal_hugging_face(case: Path) -> None:
    expected = load_file(case / "expected.safetensors")
    model, params = load(case, taps=["*"])
    found = apply(model, params, expected["input_ids"])
    assert found.keys() == expected.keys() - {"input_ids"}
    errors = {name: error(value, expected[name]) for name, value in found.items()}
    assert {name: size for name, size in errors.items() if not size <= LIMIT} == {}


@pytest.mark.parametrize("case", ["llama_full", "qwen2_window_yarn_old_rope", "gemma3_multiquery_old_rope"])
def test_every_tap_equals_hugging_face_in_one_loop(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    all_in_one_loop(monkeypatch)
    test_every_tap_and_the_logits_equal_hugging_face(GOLDENS / case)


@pytest.mark.parametrize("taps", [["layer_0", "layer_1.q", "layer_2"], ["layer_3_norm"]], ids=str)
@pytest.mark.parametrize("case", ["qwen2_grouped_tied_old_rope", "gemma3_multiquery_old_rope"])
def test_a_few_taps_equal_hugging_face(case: str, taps: list[str]) -> None:
    """The loops between taps: layers of both kinds, by a loop's counter."""
    expected = load_file(GOLDENS / case / "expected.safetensors")
    model, params = load(GOLDENS / case, taps=taps)
    found = apply(model, params, expected["input_ids"])
    assert found.keys() == {*taps, "logits"}
    for name, value in found.items():
        assert error(value, expected[name]) <= LIMIT, name


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bfloat16_keeps_the_direction(case: Path) -> None:
    expected = load_file(case / "expected.safetensors")
    model, params = load(case, "bfloat16", taps=["*"])
    for name, found in apply(model, params, expected["input_ids"]).items():
        assert cosine(found, expected[name]) >= 0.999, name


@pytest.mark.parametrize("change", [{"window": None}, {"window": 5}, {"rope": Rope(theta=1000.0)}], ids=str)
def test_a_wrong_window_or_rotation_would_show(change: dict) -> None:
    """The goldens tell layers of both kinds apart: one key more in the window is far outside the limit."""
    case = GOLDENS / "gemma3_multiquery_old_rope"
    expected = load_file(case / "expected.safetensors")
    model, params = load(case, taps=["layer_0.z"])
    first, *others = model.arch.attention
    wrong = dataclasses.replace(model.arch, attention=(dataclasses.replace(first, **change), *others))
    found = apply(model.clone(arch=wrong), params, expected["input_ids"], return_logits=False)
    assert error(found["layer_0.z"], expected["layer_0.z"]) > 100 * LIMIT


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_the_text_model_of_a_checkpoint_with_vision(prefix: str, tmp_path: Path) -> None:
    """Its sizes and tensors equal those of the text model alone, hence its activations too."""
    case = GOLDENS / "gemma3_grouped"
    text = json.loads((case / "config.json").read_text())
    config = {"model_type": "gemma3", "text_config": text, "vision_config": {"hidden_size": 8}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensors = {
        prefix + name.removeprefix("model."): tensor for name, tensor in load_file(case / "model.safetensors").items()
    }
    vision = {f"{prefix.partition('language_model')[0]}vision_tower.w": np.ones(2)}
    save_file(tensors | vision, tmp_path / "model.safetensors")
    (model, params), (alone, alone_params) = load(tmp_path), load(case)
    assert model == alone
    jax.tree.map(np.testing.assert_array_equal, params, alone_params)


@pytest.mark.parametrize("deep", [24, 80])
def test_the_program_does_not_grow_with_depth(deep: int) -> None:
    """Not with layers of two kinds either."""
    config = json.loads((GOLDENS / "gemma3_multiquery_old_rope" / "config.json").read_text())

    def lines(layers: int) -> int:
        model = create_model_with_hooks(config | {"num_hidden_layers": layers}, layers_to_extract=[3, 7])
        ids = jax.ShapeDtypeStruct((1, 12), jnp.int32)
        params = jax.eval_shape(model.init, jax.random.key(0), ids)
        return len(jax.jit(model.apply).lower(params, ids).as_text().splitlines())

    assert lines(deep) == lines(12)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3_text", "gpt2"])
def test_a_deep_model_equals_torch(family: str, tmp_path: Path, torch_there: None) -> None:
    """More layers than `MOST_PIECES`: all alike, alternating, in a pattern of six, and without rotary embeddings.

    tests/models/test_families.py has all families, in three layers.
    """
    from pod_job.checking.hf_reference import load_reference, run_reference
    from tools.tiny_model import write_tiny_model

    folder = write_tiny_model(tmp_path / family, family, layers=13, hidden=48, heads=6, head_dim=16, seed=3)
    input_ids = np.random.default_rng(0).integers(0, 256, (3, 40))
    reference = run_reference(load_reference(folder), input_ids)
    model, params = load(folder, taps=["*"])
    for name, found in apply(model, params, input_ids).items():
        assert error(found, reference[name]) <= LIMIT, name


def test_smollm2_equals_hugging_face(smollm2: Path) -> None:
    expected = load_file(GOLDENS / "smollm2_135m.safetensors")
    model, params = load(smollm2, taps=["layer_30_norm"], layers_to_extract=range(30))
    found = apply(model, params, expected["input_ids"])
    found["logits"] = found["logits"][:, -1:]
    assert {name: off for name in found if not (off := error(found[name], expected[name])) <= LIMIT} == {}


@pytest.mark.slow
def test_smollm2_in_bfloat16_keeps_the_direction(smollm2: Path) -> None:
    expected = load_file(GOLDENS / "smollm2_135m.safetensors")
    model, params = load(smollm2, "bfloat16", taps=["layer_30_norm"], layers_to_extract=range(30))
    found = apply(model, params, expected["input_ids"])
    found["logits"] = found["logits"][:, -1:]
    assert {name: low for name in found if not (low := cosine(found[name], expected[name])) >= 0.999} == {}


@pytest.mark.slow
def test_smollm2_live_against_torch(smollm2: Path, torch_there: None) -> None:
    """Every site of every layer on a prompt that no golden array holds."""
    from pod_job.checking.hf_reference import load_reference, run_reference

    input_ids = np.random.default_rng(1).integers(0, 49152, (2, 16))
    reference = run_reference(load_reference(smollm2), input_ids)
    model, params = load(smollm2, taps=["*"])
    found = apply(model, params, input_ids)
    assert {name: off for name in found if not (off := error(found[name], reference[name])) <= LIMIT} == {}


def test_taps_do_not_depend_on_the_other_taps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tap alone (loops up to it), among all layer by layer, among all in one loop: the same vectors."""
    case, ids = GOLDENS / "gemma2_grouped", np.arange(24).reshape(2, 12)
    model, params = load(case, taps=["*"])
    together = apply(model, params, ids)
    for name in ("embed", "layer_0.resid_pre", "layer_1.z", "layer_1", "layer_2.mlp_out", "layer_3_norm"):
        alone, _ = load(case, taps=[name])
        found = apply(alone, params, ids, return_logits=False)
        np.testing.assert_allclose(found[name], together[name], rtol=1e-5, atol=1e-5)
    all_in_one_loop(monkeypatch)
    for name, value in apply(model, params, ids).items():
        np.testing.assert_allclose(value, together[name], rtol=1e-5, atol=1e-5)


def program(model: Decoder, params: dict, **options) -> jax.stages.Compiled:
    ids = jnp.zeros((2, 64), jnp.int32)
    return (
        jax.jit(lambda params, ids: model.apply(params, ids, return_activations=True, **options))
        .lower(params, ids)
        .compile()
    )


def test_logits_that_are_not_returned_are_not_computed() -> None:
    model, params = load(GOLDENS / "qwen2_full", layers_to_extract=[2])
    without, with_logits = (
        program(model, params, return_logits=wanted).cost_analysis()["flops"] for wanted in (False, True)
    )
    arch = model.arch
    assert with_logits - without >= 2 * 128 * arch.hidden * arch.vocab  # the product with the head


def test_layers_past_the_last_tap_do_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted as they run: of three layers two, and all of them for logits."""
    model, params = load(GOLDENS / "qwen2_full", taps=["layer_0", "layer_1.q"])
    ran: list[int] = []

    def recording(layer: layer_loop.Layer, *rest: Any) -> Any:
        return layer_loop.run_layers(recorded(layer, ran), *rest)

    monkeypatch.setattr(decoder, "run_layers", recording)
    for return_logits, layers in ((False, 2), (True, 3)):
        ran.clear()
        apply(model, params, np.arange(8)[None], return_logits=return_logits)
        jax.effects_barrier()
        assert sorted(ran) == list(range(layers))


def recorded(layer: layer_loop.Layer, ran: list[int]) -> layer_loop.Layer:
    """Returns the layer, which adds its number to `ran` whenever it runs."""

    def run(number: jax.Array | int, carry: layer_loop.Carry) -> Any:
        jax.debug.callback(lambda number: ran.append(int(number)), number)
        return layer(number, carry)

    return run


@pytest.mark.parametrize("one_loop", [False, True], ids=["pieces", "one-loop"])
@pytest.mark.parametrize(
    ("names", "needed"),
    [
        ([], 0),
        (["layer_0"], 1),
        (["layer_1.resid_pre"], 1),
        (["layer_1.q"], 2),
        (["layer_0.mlp_out", "layer_4"], 5),
        (["layer_4.z", "layer_2"], 5),
        (["layer_9"], 10),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, list) else "",
)
def test_the_loop_stops_after_the_last_tap(
    names: list[str], needed: int, one_loop: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if one_loop:
        all_in_one_loop(monkeypatch)
    taps = tuple(Tap(name.partition(".")[2] or "resid_post", int(name[6])) for name in names)
    ran: list[int] = []

    def layer(number: jax.Array | int, carry: layer_loop.Carry) -> Any:
        after = carry[0] + 1.0
        return (after, None), dict.fromkeys(INNER_SITES, after) | {"resid_pre": carry[0], "resid_post": after}

    for to_the_end, layers in ((False, needed), (True, 10)):
        ran.clear()
        start = (jnp.zeros((1, 1, 1)), None)
        layer_loop.run_layers(recorded(layer, ran), start, 10, taps, lambda site: site, to_the_end)
        jax.effects_barrier()
        assert sorted(ran) == list(range(layers))


def test_only_chosen_taps_are_held(tmp_path: Path) -> None:
    """Temporary memory of a deep model does not grow with its depth."""
    from tools.tiny_model import write_tiny_model

    sizes = []
    for layers in (8, 32):
        model, params = load(write_tiny_model(tmp_path / str(layers), layers=layers), layers_to_extract=[1, layers - 1])
        sizes.append(program(model, params, return_logits=False).memory_analysis().temp_size_in_bytes)
    assert sizes[1] <= 1.1 * sizes[0]


@pytest.mark.parametrize("case", ["qwen2_full", "gemma3_multiquery_old_rope"])
def test_packed_prompts_equal_the_prompts_alone(case: str) -> None:
    """Also where a window reaches from one prompt into the one before."""
    model, params = load(GOLDENS / case, taps=["*"])
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 90, length) for length in (6, 3, 6)]
    row = np.concatenate([*prompts, [0, 0]])[None]
    segments = np.array([[1] * 6 + [2] * 3 + [3] * 6 + [0] * 2])
    positions = np.concatenate([np.arange(n) for n in (6, 3, 6, 2)])[None]
    packed = apply(model, params, row, segment_ids=segments, positions=positions, return_logits=False)
    # The prompts of one length in one batch: one program.
    for length, starts in ((6, (0, 9)), (3, (6,))):
        batch = np.stack([prompt for prompt in prompts if len(prompt) == length])
        for name, alone in apply(model, params, batch, return_logits=False).items():
            for start, vectors in zip(starts, alone, strict=True):
                np.testing.assert_allclose(packed[name][0, start : start + length], vectors, rtol=1e-5, atol=1e-5)


def test_the_users_document_runs_as_written() -> None:
    config = json.loads((GOLDENS / "qwen2_full" / "config.json").read_text())
    _, params = load(GOLDENS / "qwen2_full")
    input_ids = jnp.arange(12).reshape(1, 12)
    model = create_model_with_hooks(config, layers_to_extract=[0, 2])
    logits, activations = model.apply(params, input_ids, return_activations=True)
    assert set(activations) == {"layer_0", "layer_2"}
    assert activations["layer_2"].shape == (1, 12, config["hidden_size"])
    alone, _ = jax.jit(model.apply)(params, input_ids)
    np.testing.assert_allclose(alone, logits, rtol=1e-5, atol=1e-5)
    fresh = jax.eval_shape(model.init, jax.random.key(0), input_ids)
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, params)


@pytest.fixture(scope="session")
def smollm2(require: Callable[[bool, str], None]) -> Path:
    folder = Path("runs/models/SmolLM2-135M-Instruct")
    require(folder.is_dir(), "the demo model (make model)")
    return folder
