"""OLMo 2 and 3: norms after attention and mlp and none before, and one norm over all query (and all key) heads."""

from pod_job.models.families.family import POST_NORM_MODULES, Family, keys

_SWITCHES = {
    "pre_norms": False,
    "post_norms": True,
    "qk_norm": True,
    "qk_norm_of_heads": False,
    "norm_in_float32": True,
}

FAMILIES = {
    "olmo2": Family(
        architecture="Olmo2ForCausalLM",
        applied=keys("hidden_act attention_bias"),
        switches=_SWITCHES,
        modules=POST_NORM_MODULES,
    ),
    "olmo3": Family(
        architecture="Olmo3ForCausalLM",
        applied=keys("hidden_act attention_bias sliding_window layer_types"),
        switches=_SWITCHES,
        modules=POST_NORM_MODULES,
        rope_of_layer_type=True,
    ),
}
