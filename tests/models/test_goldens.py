"""The committed golden arrays agree with the weights and configuration beside them, and with torch where it is."""

import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

GOLDENS = Path(__file__).parent.parent / "goldens"
CASES = sorted(folder.name for folder in GOLDENS.iterdir() if folder.is_dir())
SITES = ("resid_pre", "resid_mid", "attn_in", "attn_out", "mlp_in", "mlp_out", "mlp_act", "q", "k", "v", "z")


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """The largest relative L2 error over rows."""
    error = np.linalg.norm(actual - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
    return float(error.max())


def is_gemma(config: dict) -> bool:
    return config["model_type"].startswith("gemma")


def activation(config: dict, x: np.ndarray) -> np.ndarray:
    if is_gemma(config):
        return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return x / (1 + np.exp(-x))


@pytest.fixture(params=CASES)
def case(request):
    folder = GOLDENS / request.param
    config = json.loads((folder / "config.json").read_text())
    return config, load_file(folder / "model.safetensors"), load_file(folder / "expected.safetensors")


def test_the_cases_cover_every_kind_of_heads_biases_ties_and_rope_spelling():
    configs = [json.loads((GOLDENS / name / "config.json").read_text()) for name in CASES]
    for family in ("qwen2", "llama"):
        kv_heads = {c["num_key_value_heads"] for c in configs if c["model_type"] == family}
        assert kv_heads == {1, 2, 4}, family
        assert {c["tie_word_embeddings"] for c in configs if c["model_type"] == family} == {True, False}
        old = {"rope_theta" in c for c in configs if c["model_type"] == family}
        assert old == {True, False}, family
    assert all(("rope_theta" in c) != ("rope_parameters" in c) for c in configs)
    assert any((c.get("rope_scaling") or {}).get("rope_type") == "llama3" for c in configs)
    assert any(c.get("attention_bias") and c.get("mlp_bias") for c in configs)
    assert any(c.get("head_dim", 8) * c["num_attention_heads"] != c["hidden_size"] for c in configs)


def test_the_cases_cover_six_families_both_layer_kinds_and_windows_that_cut():
    configs = [json.loads((GOLDENS / name / "config.json").read_text()) for name in CASES]
    assert {c["model_type"] for c in configs} == {"llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text"}
    windows = [c["sliding_window"] for c in configs if c.get("sliding_window") and c.get("use_sliding_window", True)]
    assert len(windows) >= 5
    assert set(windows) == {4}, "a third of the twelve positions"
    assert {"sliding_window_pattern" in c for c in configs if c["model_type"] == "gemma3_text"} == {True, False}
    assert any((c.get("rope_scaling") or {}).get("rope_type") == "yarn" for c in configs)
    assert any(c.get("attn_logit_softcapping") for c in configs)
    assert any(c.get("final_logit_softcapping") for c in configs)


def test_every_tap_is_there_with_the_shape_the_configuration_gives(case):
    config, _, expected = case
    layers, d = config["num_hidden_layers"], config["hidden_size"]
    h = config.get("head_dim") or d // config["num_attention_heads"]
    widths = dict.fromkeys(SITES, d) | {"mlp_act": config["intermediate_size"]}
    widths |= dict.fromkeys(("attn_out_pre_norm", "mlp_out_pre_norm"), d) if is_gemma(config) else {}
    widths |= dict.fromkeys(("q", "z"), h * config["num_attention_heads"])
    widths |= dict.fromkeys(("k", "v"), h * config["num_key_value_heads"])
    shapes = {"embed": d, f"layer_{layers}_norm": d, "logits": config["vocab_size"]}
    for i in range(layers):
        shapes |= {f"layer_{i}": d} | {f"layer_{i}.{site}": width for site, width in widths.items()}
    found = {name: array.shape for name, array in expected.items()}
    assert found == {"input_ids": (2, 12)} | {name: (2, 12, width) for name, width in shapes.items()}
    assert {str(array.dtype) for name, array in expected.items() if name != "input_ids"} == {"float32"}


def test_the_residual_stream_adds_up(case):
    config, weights, expected = case
    scale = np.float32(config["hidden_size"] ** 0.5 if is_gemma(config) else 1.0)
    embedded = weights["model.embed_tokens.weight"][expected["input_ids"]] * scale
    np.testing.assert_array_equal(embedded, expected["embed"])
    before = expected["embed"]
    for i in range(config["num_hidden_layers"]):
        tap = f"layer_{i}"
        np.testing.assert_array_equal(expected[f"{tap}.resid_pre"], before)
        np.testing.assert_array_equal(before + expected[f"{tap}.attn_out"], expected[f"{tap}.resid_mid"])
        before = expected[f"{tap}.resid_mid"] + expected[f"{tap}.mlp_out"]
        np.testing.assert_array_equal(before, expected[tap])


def test_sites_follow_from_the_weights(case):
    config, weights, expected = case

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        variance = np.mean(x.astype(np.float64) ** 2, axis=-1, keepdims=True)
        return x / np.sqrt(variance + config["rms_norm_eps"]) * (weights[f"{name}.weight"] + is_gemma(config))

    def post_norm(x: np.ndarray, name: str) -> np.ndarray:
        return norm(x, name) if is_gemma(config) else x

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0)

    layers = config["num_hidden_layers"]
    for i in range(layers):
        tap, layer = f"layer_{i}", f"model.layers.{i}"
        attention_in = norm(expected[f"{tap}.resid_pre"], f"{layer}.input_layernorm")
        assert relative_error(attention_in, expected[f"{tap}.attn_in"]) < 1e-5
        for site in ("q", "k", "v"):
            assert (
                relative_error(linear(attention_in, f"{layer}.self_attn.{site}_proj"), expected[f"{tap}.{site}"]) < 1e-5
            )
        projected = linear(expected[f"{tap}.z"], f"{layer}.self_attn.o_proj")
        added = post_norm(projected, f"{layer}.post_attention_layernorm")
        assert relative_error(projected, expected.get(f"{tap}.attn_out_pre_norm", projected)) < 1e-5
        assert relative_error(added, expected[f"{tap}.attn_out"]) < 1e-5
        mlp_norm = "pre_feedforward_layernorm" if is_gemma(config) else "post_attention_layernorm"
        mlp_in = norm(expected[f"{tap}.resid_mid"], f"{layer}.{mlp_norm}")
        assert relative_error(mlp_in, expected[f"{tap}.mlp_in"]) < 1e-5
        gate, up = linear(mlp_in, f"{layer}.mlp.gate_proj"), linear(mlp_in, f"{layer}.mlp.up_proj")
        assert relative_error(activation(config, gate) * up, expected[f"{tap}.mlp_act"]) < 1e-5
        projected = linear(expected[f"{tap}.mlp_act"], f"{layer}.mlp.down_proj")
        added = post_norm(projected, f"{layer}.post_feedforward_layernorm")
        assert relative_error(projected, expected.get(f"{tap}.mlp_out_pre_norm", projected)) < 1e-5
        assert relative_error(added, expected[f"{tap}.mlp_out"]) < 1e-5
    final = norm(expected[f"layer_{layers - 1}"], "model.norm")
    assert relative_error(final, expected[f"layer_{layers}_norm"]) < 1e-5
    head = weights["model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"]
    logits = expected[f"layer_{layers}_norm"] @ head.T
    if cap := config.get("final_logit_softcapping"):
        logits = cap * np.tanh(logits / cap)
    assert relative_error(logits, expected["logits"]) < 1e-5


def test_the_real_model_has_each_layer_and_the_last_logits():
    expected = load_file(GOLDENS / "smollm2_135m.safetensors")
    names = {f"layer_{i}" for i in range(30)} | {"layer_30_norm"}
    assert set(expected) == names | {"input_ids", "logits"}
    assert {expected[name].shape for name in names} == {(1, 8, 576)}
    assert expected["input_ids"].shape == (1, 8)
    assert expected["logits"].shape == (1, 1, 49152)
    assert all(
        np.isfinite(expected[name]).all() and (np.linalg.norm(expected[name], axis=-1) > 0).all() for name in names
    )


@pytest.mark.skipif(
    importlib.util.find_spec("torch") is None and not os.environ.get("CI"), reason="torch is not installed"
)
@pytest.mark.parametrize("name", CASES)
def test_torch_still_computes_the_committed_arrays(name):
    from pod_job.checking.hf_reference import load_reference, run_reference

    expected = load_file(GOLDENS / name / "expected.safetensors")
    actual = run_reference(load_reference(GOLDENS / name), expected.pop("input_ids"))
    assert set(actual) == set(expected)
    assert max(relative_error(actual[tap], expected[tap]) for tap in expected) < 1e-5
