"""Qwen3-Next and Qwen3.5: gated delta rules in three of four layers, a gate after attention, part of a head rotated."""

from pod_job.models.families.family import Family, keys

_APPLIED = (
    "hidden_act attention_bias partial_rotary_factor layer_types full_attention_interval linear_num_key_heads "
    "linear_num_value_heads linear_key_head_dim linear_value_head_dim linear_conv_kernel_dim"
)
_EXPERTS = "num_experts num_experts_per_tok shared_expert_intermediate_size"
_TRAINING = "output_router_logits router_aux_loss_coef"
_SWITCHES = {"norm_plus_one": True, "qk_norm": True, "attn_gate": True}
_LAYER, _MLP = "model.layers.{}.linear_attn", "model.layers.{}.mlp"
_MODULES = {
    "attn_gate": "model.layers.{}.self_attn.q_proj",
    **dict.fromkeys(("delta_q_conv", "delta_k_conv", "delta_v_conv"), f"{_LAYER}.conv1d"),
    "delta_rate": f"{_LAYER}.A_log",
    "delta_step": f"{_LAYER}.dt",
    "delta_norm": f"{_LAYER}.norm",
    "delta_o": f"{_LAYER}.out_proj",
}
_PROJECTIONS = {
    **dict.fromkeys(("delta_q", "delta_k", "delta_v"), f"{_LAYER}.in_proj_qkv"),
    "delta_gate": f"{_LAYER}.in_proj_z",
    "delta_beta": f"{_LAYER}.in_proj_b",
    "delta_decay": f"{_LAYER}.in_proj_a",
}
_FUSED_PROJECTIONS = {
    **dict.fromkeys(("delta_q", "delta_k", "delta_v", "delta_gate"), f"{_LAYER}.in_proj_qkvz"),
    **dict.fromkeys(("delta_beta", "delta_decay"), f"{_LAYER}.in_proj_ba"),
}
_EXPERT_MODULES = {
    "router": f"{_MLP}.gate",
    "gate": f"{_MLP}.experts.{{}}.gate_proj",
    "up": f"{_MLP}.experts.{{}}.up_proj",
    "down": f"{_MLP}.experts.{{}}.down_proj",
    "shared_gate": f"{_MLP}.shared_expert.gate_proj",
    "shared_up": f"{_MLP}.shared_expert.up_proj",
    "shared_down": f"{_MLP}.shared_expert.down_proj",
    "shared_router": f"{_MLP}.shared_expert_gate",
}
_BARE = keys("delta_rate delta_step")
_LAYER_TYPES = keys("full_attention linear_attention")
_POSITIONS_OF_PICTURES = keys("mrope_section mrope_interleaved")

FAMILIES = {
    "qwen3_next": Family(
        architecture="Qwen3NextForCausalLM",
        applied=keys(f"{_APPLIED} norm_topk_prob {_EXPERTS}"),
        inert=keys(f"intermediate_size {_TRAINING}"),  # the size is that of layers without experts
        computed={"decoder_sparse_step": (1,), "mlp_only_layers": ([], None)},
        renamed={"intermediate_size": "moe_intermediate_size"},
        switches=_SWITCHES,
        modules=_MODULES | _FUSED_PROJECTIONS | _EXPERT_MODULES,
        bare=_BARE,
        fused_by_head=frozenset({"q", "attn_gate", *_FUSED_PROJECTIONS}),
        partial_rotary=True,
        layer_types=_LAYER_TYPES,
    ),
    "qwen3_5_text": Family(
        architecture="Qwen3_5ForCausalLM",
        applied=keys(_APPLIED),
        computed={"mlp_only_layers": ([], None)},
        inert_rope=_POSITIONS_OF_PICTURES,
        switches=_SWITCHES,
        modules=_MODULES | _PROJECTIONS,
        bare=_BARE,
        fused_by_head=keys("q attn_gate"),
        partial_rotary=True,
        layer_types=_LAYER_TYPES,
    ),
    "qwen3_5_moe_text": Family(
        architecture="Qwen3_5MoeForCausalLM",
        applied=keys(f"{_APPLIED} {_EXPERTS}"),
        inert=keys(f"intermediate_size {_TRAINING}"),
        computed={"mlp_only_layers": ([], None)},
        renamed={"intermediate_size": "moe_intermediate_size"},
        inert_rope=_POSITIONS_OF_PICTURES,
        switches=_SWITCHES,
        modules=_MODULES | _PROJECTIONS | _EXPERT_MODULES,
        bare=_BARE,
        fused_by_head=keys("q attn_gate"),
        partial_rotary=True,
        layer_types=_LAYER_TYPES,
    ),
}
