"""config.json to sizes: both rope spellings, and what is refused."""

from typing import Any

import numpy as np
import pytest

from pod_job.arch import read_arch
from pod_job.errors import JobError
from pod_job.rope import Rope

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


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"model_type": "mamba"},
            "model_type='mamba' is not one of the families here: llama, mistral, qwen2, qwen3, gemma2, gemma3_text",
        ),
        ({"hidden_size": None}, "hidden_size is missing; it is needed to size the model"),
        ({"num_hidden_layers": "24"}, "num_hidden_layers='24' is not a positive whole number"),
        ({"rms_norm_eps": None}, "rms_norm_eps is missing"),
        ({"rope_theta": None}, "neither rope_theta nor rope_parameters.rope_theta is there"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope type 'dynamic' is not supported"),
        ({"num_key_value_heads": 4}, "num_key_value_heads=4 does not divide num_attention_heads=14"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' is not supported"),
    ],
)
def test_what_we_do_not_have_is_refused_by_name(change: dict[str, Any], says: str) -> None:
    with pytest.raises(JobError) as refused:
        read_arch(QWEN | change, "config.json")
    assert str(refused.value).startswith("config.json: ")
    assert says in str(refused.value)
