"""Any config.json: each variant is computed as Hugging Face computes it, at every tap, or refused by name.

A variant is a family's small configuration with one change, as hubs and tools write them: old and new spellings, keys
left out, keys of other families, keys that transformers reads through code that all families share.
"""

import copy
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from test_models import apply, error, load

from pod_job.errors import JobError
from pod_job.models.arch import read_arch
from pod_job.models.families import CAUSAL, FAMILIES

LIMIT = 1e-5
SEQ = 12

BASE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 64,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000.0,
    "tie_word_embeddings": False,
    "pad_token_id": None,
}
DELTA: dict[str, Any] = {
    "head_dim": 16,  # of which a quarter is rotated; of 2 dimensions transformers computes no dynamic angles
    "full_attention_interval": 2,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 24,
    "linear_value_head_dim": 12,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 3, "shared_expert_intermediate_size": 16}
OF_FAMILY: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 4},
    "qwen2": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "qwen3": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "gemma2": {"sliding_window": 4, "query_pre_attn_scalar": 6, "attn_logit_softcapping": 2.0},
    "gemma3_text": {"sliding_window": 4, "query_pre_attn_scalar": 6, "sliding_window_pattern": 2},
    "smollm3": {"no_rope_layer_interval": 2},
    "granite": {"residual_multiplier": 0.5, "attention_multiplier": 0.4, "logits_scaling": 3.0},
    "olmo3": {"sliding_window": 4},
    "gpt_neox": {"rotary_pct": 0.5},
    "phi3": {"partial_rotary_factor": 0.5, "original_max_position_embeddings": 8},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 3},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 4},
    "qwen3_next": DELTA | EXPERTS,
    "qwen3_5_text": DELTA,
    "qwen3_5_moe_text": DELTA | EXPERTS,
}
REMOVED = "(removed)"
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.2, 1.5, 2.0],
    "long_factor": [2.0, 2.5, 3.0, 4.0],
    "original_max_position_embeddings": 8,
}
LAYERED = {
    "full_attention": {"rope_type": "default", "rope_theta": 77.0},
    "sliding_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 55.0},
}
CHANGES: list[dict[str, Any]] = [
    {},
    {"is_causal": True},
    {"is_causal": False},
    {"is_causal": None},
    {"use_bidirectional_attention": True},
    {"attention_chunk_size": 4},
    {"chunk_size_feed_forward": 2},
    {"is_decoder": True, "add_cross_attention": False},
    {"add_cross_attention": True},
    {"rope_scaling": {"type": "linear", "factor": 2.0}},
    {"rope_scaling": {"rope_type": "linear", "factor": 0.5}},
    {"rope_scaling": YARN},
    {"rope_scaling": YARN | {"attention_factor": 1.5}},
    {"rope_scaling": YARN | {"truncate": False, "beta_fast": 4.0, "beta_slow": 0.5}},
    {"rope_scaling": YARN | {"mscale": 1.0, "mscale_all_dim": 0.7}},
    {"rope_scaling": YARN | {"mscale": 1.0}},
    {"rope_scaling": YARN | {"partial_rotary_factor": 0.5}},
    {"rope_scaling": LLAMA3},
    {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
    {"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "factor": 2.0}},
    {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "surprise": 3}},
    {"rope_scaling": YARN, "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0}},
    {"rope_theta": REMOVED, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 50.0}},
    {"rope_theta": 2000.0, "rope_parameters": {"rope_type": "default", "rope_theta": 50.0}},
    {"rope_theta": REMOVED, "rope_parameters": LAYERED},
    {"rope_theta": REMOVED},
    {"rope_theta": 1},
    {"rope_local_base_freq": 33.0},
    {"partial_rotary_factor": 0.5},
    {"partial_rotary_factor": 1.0},
    {"hidden_act": "gelu_pytorch_tanh"},
    {"hidden_act": "relu"},
    {"hidden_activation": "silu"},
    {"hidden_activation": "gelu"},
    {"head_dim": REMOVED},
    {"head_dim": None},
    {"head_dim": 12},
    {"num_key_value_heads": 1},
    {"num_key_value_heads": 4},
    {"num_key_value_heads": 3},
    {"num_key_value_heads": REMOVED},
    {"num_key_value_heads": None},
    {"attention_bias": True},
    {"mlp_bias": True},
    {"qkv_bias": True},
    {"sliding_window": None},
    {"sliding_window": 1},
    {"sliding_window": REMOVED},
    {"use_sliding_window": False},
    {"max_window_layers": 0},
    {"max_window_layers": REMOVED},
    {"layer_types": ["full_attention", "sliding_attention", "full_attention"]},
    {"layer_types": ["sliding_attention"] * 3, "sliding_window": 3},
    {"layer_types": ["full_attention"] * 2},
    {"sliding_window_pattern": 3},
    {"sliding_window_pattern": REMOVED},
    {"_sliding_window_pattern": 3},
    {"query_pre_attn_scalar": 16},
    {"query_pre_attn_scalar": REMOVED},
    {"attn_logit_softcapping": 1.0},
    {"attn_logit_softcapping": None},
    {"attn_logit_softcapping": REMOVED},
    {"final_logit_softcapping": 1.0},
    {"final_logit_softcapping": None},
    {"rms_norm_eps": 0.1},
    {"rms_norm_eps": REMOVED},
    {"tie_word_embeddings": True},
    {"tie_word_embeddings": REMOVED},
    {"max_position_embeddings": 8, "rope_scaling": YARN},
    {"quantization_config": {"quant_method": "bitnet"}},
    {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}},
    {"residual_multiplier": 0.2, "embedding_multiplier": 12.0},
    {"attention_dropout": 0.5, "initializer_range": 1.0, "use_cache": False, "pretraining_tp": 4},
    {"made_by": "somebody", "epochs": 3},
    *({"hidden_act": name} for name in ("gelu", "gelu_new", "gelu_fast", "quick_gelu", "swish", "relu2", "gelu_10")),
    {"activation_function": "relu"},
    {"no_rope_layers": [0, 1, 0]},
    {"no_rope_layers": [0, 1]},
    {"no_rope_layers": [1, 1, 1, 0]},
    {"no_rope_layer_interval": 3, "use_sliding_window": True, "sliding_window": 4},
    {"use_sliding_window": False, "sliding_window": 4, "layer_types": ["sliding_attention"] * 3},
    {"embedding_multiplier": 12},
    {"attention_multiplier": 0.1},
    {"logits_scaling": 8.0},
    {"residual_multiplier": -1.0},
    {"rotary_pct": 1.0},
    {"rotary_pct": 0.25, "rotary_emb_base": 77},
    {"rope_scaling": {"type": "linear", "factor": 2.0}, "rotary_pct": 0.25},
    {"use_parallel_residual": False},
    {"attention_bias": False},
    {"n_inner": 40},
    {"n_inner": None},
    {"layer_norm_epsilon": 0.1, "layer_norm_eps": 0.1},
    {"scale_attn_weights": False},
    {"scale_attn_by_inverse_layer_idx": True},
    {"reorder_and_upcast_attn": True},
    {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5, "hidden_dropout": 0.5, "summary_type": "mean"},
    {"rope_scaling": LONGROPE, "partial_rotary_factor": 1.0},
    {"rope_scaling": LONGROPE, "partial_rotary_factor": 1.0, "original_max_position_embeddings": 16},
    {"rope_scaling": LONGROPE | {"short_factor": [1.0] * 3}, "partial_rotary_factor": 1.0},
    {"rope_scaling": LONGROPE | {"long_factor": "big"}, "partial_rotary_factor": 1.0},
    {"rope_scaling": {"type": "su", "short_factor": [1.0, 1.5], "long_factor": [2.0, 3.0]}},
    {"rope_scaling": {"type": "longrope", "short_factor": [1.0, 1.5], "long_factor": [2.0, 3.0], "factor": 3.0}},
    {"partial_rotary_factor": 0.4},
    {"num_experts": 5, "num_experts_per_tok": 5},
    {"num_local_experts": 3, "num_experts_per_tok": 4},
    {"num_experts": 0},
    {"num_experts_per_tok": 1, "norm_topk_prob": True},
    {"decoder_sparse_step": 2},
    {"mlp_only_layers": [1]},
    {"router_jitter_noise": 0.5, "output_router_logits": True, "router_aux_loss_coef": 0.1},
    {"layer_types": ["full_attention", "linear_attention", "full_attention"]},
    {"layer_types": ["linear_attention"] * 3},
    {"full_attention_interval": 1},
    {"full_attention_interval": REMOVED},
    {"linear_num_key_heads": 3},
    {"linear_num_value_heads": 2, "linear_conv_kernel_dim": 2},
    {"linear_conv_kernel_dim": 20, "linear_value_head_dim": 7},
    {"shared_expert_intermediate_size": 0},
    {"shared_expert_intermediate_size": 40, "num_experts": 5},
]
KNOWN_STRIDE, UNKNOWN_STRIDE = 3, 10
"""One change of so many is tried in a family that knows all its keys, and in one that does not; 1 tries all."""


def known(family: str, change: dict[str, Any]) -> bool:
    of_family = FAMILIES[family]
    return change.keys() <= of_family.all_applied | of_family.inert | of_family.computed.keys()


VARIANTS = [
    (family, change)
    for first, family in enumerate(sorted(CAUSAL))
    for number, change in enumerate(CHANGES)
    if (first + number) % (KNOWN_STRIDE if known(family, change) else UNKNOWN_STRIDE) == 0
]


def variant(family: str, change: dict[str, Any]) -> dict[str, Any]:
    own = {FAMILIES[family].own_name(key): value for key, value in BASE.items() if key not in FAMILIES[family].without}
    config = {"model_type": family} | own | OF_FAMILY.get(family, {}) | copy.deepcopy(change)
    return {key: value for key, value in config.items() if value != REMOVED}


def hf_taps(config: dict[str, Any], folder: Path, input_ids: np.ndarray) -> dict[str, np.ndarray] | None:
    """Writes the variant with random weights; every tap by torch, None where transformers itself refuses it."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    from pod_job.checking.hf_reference import load_reference, run_reference

    folder.mkdir()
    torch.manual_seed(0)
    try:
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[config["model_type"]].from_dict(copy.deepcopy(config)))
        with torch.no_grad():
            for weight in model.parameters():
                weight.normal_(std=0.2)
        model.save_pretrained(folder)
        (folder / "config.json").write_text(json.dumps(config))
        return run_reference(load_reference(folder), input_ids)
    except Exception:
        return None


def outcome(config: dict[str, Any], folder: Path, input_ids: np.ndarray) -> tuple[str, float]:
    """`refused`, or `computed` with the largest error at any tap."""
    try:
        read_arch(config, "config.json")
    except JobError:
        return "refused", 0.0
    if (truth := hf_taps(config, folder, input_ids)) is None:
        return "computed, and refused by transformers", np.inf
    model, params = load(folder)
    # Op by op: what is compiled for one variant serves all others of the same shapes. Experts run in a loop.
    with jax.disable_jit(not model.arch.experts):
        found = apply(model, params, input_ids)
    return "computed", max(error(found[name], truth[name]) for name in found)


def compare(variants: Sequence[tuple[str, dict[str, Any]]], folder: Path) -> Counter[str]:
    """Counts the outcomes; fails with every variant that is neither refused nor within the limit."""
    input_ids = np.random.default_rng(0).integers(0, BASE["vocab_size"], (2, SEQ))
    counts, wrong = Counter[str](), []
    for number, (family, change) in enumerate(variants):
        kind, worst = outcome(variant(family, change), folder / str(number), input_ids)
        counts[kind] += 1
        if not worst < LIMIT:
            wrong.append((family, change, kind, worst))
    assert wrong == []
    return counts


@pytest.mark.pod
@pytest.mark.parametrize("family", sorted(CAUSAL))
def test_every_variant_is_computed_as_torch_computes_it_or_refused(
    family: str, torch_there: None, tmp_path: Path
) -> None:
    counts = compare([variant for variant in VARIANTS if variant[0] == family], tmp_path)
    assert counts["computed"] >= 9
    assert counts["refused"] >= 4


def test_there_are_hundreds_of_variants() -> None:
    assert len(VARIANTS) >= 400
