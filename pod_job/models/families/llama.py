"""Llama and the families whose layers are Llama's but for biases, windows, and norms of queries and keys."""

from pod_job.models.families.family import Family, keys

_WINDOWS = "use_sliding_window sliding_window max_window_layers layer_types"

FAMILIES = {
    "llama": Family(architecture="LlamaForCausalLM", applied=keys("hidden_act attention_bias mlp_bias")),
    "mistral": Family(architecture="MistralForCausalLM", applied=keys("hidden_act sliding_window")),
    "qwen2": Family(
        architecture="Qwen2ForCausalLM", applied=keys(f"hidden_act {_WINDOWS}"), switches={"qkv_bias": True}
    ),
    "qwen3": Family(
        architecture="Qwen3ForCausalLM",
        applied=keys(f"hidden_act attention_bias {_WINDOWS}"),
        switches={"qk_norm": True},
    ),
    **{
        # The text models of Qwen2-VL and Qwen2.5-VL: for text alone, their three positions of a token are one.
        f"{name}_text": Family(
            architecture=None,
            applied=keys(f"hidden_act {_WINDOWS}"),
            inert_rope=keys("mrope_section"),
            without=keys("head_dim"),
            switches={"qkv_bias": True},
        )
        for name in ("qwen2_vl", "qwen2_5_vl")
    },
    "smollm3": Family(
        architecture="SmolLM3ForCausalLM",
        applied=keys(
            "hidden_act attention_bias mlp_bias use_sliding_window sliding_window layer_types no_rope_layers "
            "no_rope_layer_interval"
        ),
    ),
    "granite": Family(
        architecture="GraniteForCausalLM",
        applied=keys(
            "hidden_act attention_bias mlp_bias embedding_multiplier logits_scaling residual_multiplier "
            "attention_multiplier"
        ),
    ),
}
