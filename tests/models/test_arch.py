"""config.json to sizes: both rope spellings, and what is refused."""

from typing import Any

import numpy as np
import pytest

from pod_job.errors import JobError
from pod_job.models.activations import ACTIVATION_FUNCTIONS
from pod_job.models.arch import ACTIVATIONS, read_arch
from pod_job.models.families import FAMILIES, TOWERS
from pod_job.models.rope import Rope

QWEN: dict[str, Any] = {
    "model_type": "qwen2",
    "hidden_size": 896,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "intermediate_size": 4864,
    "vocab_size": 151936,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
}


def test_qwen2_has_biases_on_q_k_v_only() -> None:
    arch = read_arch(QWEN)
    assert (arch.head_dim, arch.qkv_bias, arch.out_bias, arch.mlp_bias) == (64, True, False, False)


def test_every_activation_that_is_accepted_is_computed() -> None:
    assert tuple(ACTIVATION_FUNCTIONS) == ACTIVATIONS


def test_old_and_new_rope_spelling_are_the_same_model() -> None:
    new = {key: value for key, value in QWEN.items() if key != "rope_theta"}
    assert read_arch(new | {"rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}}) == read_arch(QWEN)


def test_head_size_is_not_always_hidden_over_heads() -> None:
    assert read_arch(QWEN | {"head_dim": 128}).head_dim == 128


def test_llama3_keeps_short_wavelengths_and_stretches_long_ones() -> None:
    plain = Rope(theta=500000.0).frequencies(128)
    scaled = Rope(theta=500000.0, kind="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0).frequencies(128)
    assert scaled[0] == plain[0]
    np.testing.assert_allclose(scaled[-1], plain[-1] / 8, rtol=1e-6)
    assert np.all(np.diff(scaled) < 0)


def test_yarn_keeps_fast_pairs_divides_slow_ones_and_grows_attention() -> None:
    """Qwen2.5 as its model card says to stretch it: four times 32,768 positions."""
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    (layer,) = set(read_arch(QWEN | {"rope_scaling": scaling}).attention)
    plain, stretched = Rope(theta=1e6).frequencies(64), layer.rope.frequencies(64)
    np.testing.assert_array_equal(stretched[:12], plain[:12])
    np.testing.assert_allclose(stretched[-10:], plain[-10:] / 4, rtol=1e-6)
    assert layer.rope.attention_factor == pytest.approx(0.1 * np.log(4) + 1)


# What google/gemma-3-4b-it's config.json says of its text model; the rest is transformers' defaults.
GEMMA3_4B: dict[str, Any] = {
    "model_type": "gemma3",
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
}


def test_a_sparse_gemma3_configuration_is_filled_as_transformers_does() -> None:
    arch = read_arch(GEMMA3_4B)
    assert (arch.heads, arch.kv_heads, arch.head_dim, arch.vocab, arch.tied) == (8, 4, 256, 262_208, True)
    local, everywhere = arch.attention[0], arch.attention[5]
    assert (local.window, local.rope) == (1024, Rope(theta=10_000.0))
    assert (everywhere.window, everywhere.rope) == (None, Rope(theta=1e6, kind="linear", factor=8.0))
    assert [i for i, layer in enumerate(arch.attention) if layer == everywhere] == [5, 11, 17, 23, 29]


def test_both_spellings_of_gemma3_are_the_same_model() -> None:
    rope = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    }
    types = ["full_attention" if i % 6 == 5 else "sliding_attention" for i in range(34)]
    text = GEMMA3_4B["text_config"] | {"rope_parameters": rope, "layer_types": types}
    del text["rope_scaling"]
    assert read_arch(GEMMA3_4B | {"text_config": text}) == read_arch(GEMMA3_4B)


def test_a_window_that_is_named_and_not_used_is_not_used() -> None:
    assert {layer.window for layer in read_arch(QWEN | {"sliding_window": 4096}).attention} == {None}
    used = read_arch(QWEN | {"sliding_window": 4096, "use_sliding_window": True, "max_window_layers": 20})
    assert [layer.window for layer in used.attention] == [None] * 20 + [4096] * 4


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"model_type": "mamba"},
            f"model_type='mamba' is not one of the families here: {', '.join([*FAMILIES, *TOWERS])}; docs/cookbook.md",
        ),
        ({"hidden_size": None}, "hidden_size is missing; it is needed to size the model"),
        ({"num_hidden_layers": "24"}, "num_hidden_layers='24' is not a positive whole number"),
        ({"num_hidden_layers": 2**31}, "num_hidden_layers=2147483648 is more than a decoder here may have, 10000"),
        ({"rms_norm_eps": None}, "rms_norm_eps is missing"),
        ({"rope_theta": None}, "neither rope_theta nor rope_parameters.rope_theta is there"),
        ({"rope_scaling": {"type": "proportional"}}, "rope type 'proportional' is not supported"),
        ({"num_key_value_heads": 4}, "num_key_value_heads=4 does not divide num_attention_heads=14"),
        ({"rope_theta": "1e6"}, "rope_theta='1e6' is not a positive number"),
        (
            {"use_sliding_window": True, "sliding_window": 4, "layer_types": ["chunked_attention"] * 24},
            "layer_types has 24 entries (chunked_attention) for 24 layers; each layer needs one of full_attention, sl",
        ),
        (
            {"use_sliding_window": True, "max_window_layers": 0, "sliding_window": 0},
            "sliding_window=0 is not a positive whole number",
        ),
        ({"model_type": "gemma2", "use_bidirectional_attention": True}, "use_bidirectional_attention=true is not"),
        ({"hidden_act": "mish"}, "hidden_act='mish' is not supported; silu, swish, "),
    ],
)
def test_what_we_do_not_have_is_refused_by_name(change: dict[str, Any], says: str) -> None:
    with pytest.raises(JobError) as refused:
        read_arch(QWEN | change, "config.json")
    assert str(refused.value).startswith("config.json: ")
    assert says in str(refused.value)
