"""Mixtures of experts: Qwen3-MoE and Mixtral, like Qwen3 and Mistral but for the mlp, and gpt-oss."""

from pod_job.models.families.family import Family, keys

_EXPERTS = "num_experts num_local_experts num_experts_per_tok"
_TRAINING = "output_router_logits router_aux_loss_coef"

FAMILIES = {
    "qwen3_moe": Family(
        architecture="Qwen3MoeForCausalLM",
        applied=keys(f"hidden_act attention_bias use_sliding_window sliding_window norm_topk_prob {_EXPERTS}"),
        inert=keys(f"intermediate_size max_window_layers {_TRAINING}"),  # the size is that of layers without experts
        computed={"decoder_sparse_step": (1,), "mlp_only_layers": ([], None)},
        renamed={"intermediate_size": "moe_intermediate_size"},
        switches={"qk_norm": True},
        modules={
            "router": "model.layers.{}.mlp.gate",
            "gate": "model.layers.{}.mlp.experts.{}.gate_proj",
            "up": "model.layers.{}.mlp.experts.{}.up_proj",
            "down": "model.layers.{}.mlp.experts.{}.down_proj",
        },
    ),
    "mixtral": Family(
        architecture="MixtralForCausalLM",
        applied=keys(f"hidden_act sliding_window {_EXPERTS}"),
        inert=keys(f"router_jitter_noise {_TRAINING}"),  # noise of training
        modules={
            "router": "model.layers.{}.block_sparse_moe.gate",
            "gate": "model.layers.{}.block_sparse_moe.experts.{}.w1",
            "up": "model.layers.{}.block_sparse_moe.experts.{}.w3",
            "down": "model.layers.{}.block_sparse_moe.experts.{}.w2",
        },
        null_head_dim=True,
    ),
    "gpt_oss": Family(
        architecture="GptOssForCausalLM",
        applied=keys(f"attention_bias sliding_window layer_types swiglu_alpha swiglu_limit {_EXPERTS}"),
        inert=keys(f"hidden_act experts_per_token initial_context_length {_TRAINING}"),
        switches={"mlp_bias": True, "router_bias": True, "sinks": True, "norm_in_float32": True},
        modules={
            "sinks": "model.layers.{}.self_attn.sinks",
            "router": "model.layers.{}.mlp.router",
            "gate": "model.layers.{}.mlp.experts.gate_up_proj",
            "up": "model.layers.{}.mlp.experts.gate_up_proj",
            "down": "model.layers.{}.mlp.experts.down_proj",
        },
        bare=keys("sinks gate up down"),
        experts_fused=True,
        dequantized=keys("mxfp4"),
    ),
}
