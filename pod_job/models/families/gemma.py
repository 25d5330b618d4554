"""Gemma 1, 2 and 3: scaled embeddings, norms that multiply by 1 + weight; from Gemma 2 on norms after each part too."""

from pod_job.models.families.family import POST_NORM_MODULES, Family, keys

_NEWER = "hidden_activation attention_bias query_pre_attn_scalar sliding_window layer_types final_logit_softcapping"
_PLUS_ONE = {"norm_plus_one": True}
_MODULES = POST_NORM_MODULES | {"mlp_norm": "model.layers.{}.pre_feedforward_layernorm"}

FAMILIES = {
    "gemma": Family(
        architecture="GemmaForCausalLM",
        applied=keys("hidden_act attention_bias"),
        switches=_PLUS_ONE,
        embedding_times_sqrt_hidden=True,
    ),
    "gemma2": Family(
        architecture="Gemma2ForCausalLM",
        applied=keys(f"{_NEWER} attn_logit_softcapping"),
        inert=keys("hidden_act"),  # a dead key, which its files have
        switches=_PLUS_ONE | {"post_norms": True},
        modules=_MODULES,
        embedding_times_sqrt_hidden=True,
    ),
    "gemma3_text": Family(
        architecture="Gemma3ForCausalLM",
        applied=keys(f"{_NEWER} sliding_window_pattern _sliding_window_pattern rope_local_base_freq"),
        inert=keys("hidden_act attn_logit_softcapping"),  # its attention reads no cap
        switches=_PLUS_ONE | {"post_norms": True, "qk_norm": True},
        modules=_MODULES,
        embedding_times_sqrt_hidden=True,
        rope_of_layer_type=True,
    ),
}
