"""GPT-2 and GPT-NeoX (Pythia): LayerNorms and biases, a plain mlp, fused queries, keys and values."""

from pod_job.models.families.family import Family, keys

_SWITCHES = {"layer_norm": True, "gated": False, "mlp_bias": True}

FAMILIES = {
    "gpt2": Family(
        architecture="GPT2LMHeadModel",
        inert=keys(
            "n_ctx resid_pdrop embd_pdrop attn_pdrop summary_type summary_use_proj summary_activation "
            "summary_proj_to_labels summary_first_dropout"
        ),
        computed={
            "scale_attn_weights": (True,),
            "scale_attn_by_inverse_layer_idx": (False,),
            "reorder_and_upcast_attn": (False,),
        },
        without=keys("head_dim num_key_value_heads rope_parameters rope_scaling rope_theta"),
        renamed={
            "hidden_size": "n_embd",
            "num_hidden_layers": "n_layer",
            "num_attention_heads": "n_head",
            "max_position_embeddings": "n_positions",
            "intermediate_size": "n_inner",
            "rms_norm_eps": "layer_norm_epsilon",
            "hidden_act": "activation_function",
        },
        switches=_SWITCHES | {"learned_positions": True, "qkv_bias": True, "out_bias": True},
        modules={
            "embed": "model.wte",
            "positions": "model.wpe",
            "attn_norm": "model.h.{}.ln_1",
            "q": "model.h.{}.attn.c_attn",
            "k": "model.h.{}.attn.c_attn",
            "v": "model.h.{}.attn.c_attn",
            "o": "model.h.{}.attn.c_proj",
            "mlp_norm": "model.h.{}.ln_2",
            "up": "model.h.{}.mlp.c_fc",
            "down": "model.h.{}.mlp.c_proj",
            "final_norm": "model.ln_f",
        },
        prefix="transformer.",
        in_by_out=True,
        mlp_of_hidden=4,
    ),
    "gpt_neox": Family(
        architecture="GPTNeoXForCausalLM",
        applied=keys("hidden_act attention_bias use_parallel_residual rotary_pct rotary_emb_base"),
        inert=keys("hidden_dropout"),
        without=keys("head_dim num_key_value_heads rope_theta"),
        renamed={"rms_norm_eps": "layer_norm_eps"},
        switches=_SWITCHES,
        modules={
            "embed": "model.embed_in",
            "q": "model.layers.{}.attention.query_key_value",
            "k": "model.layers.{}.attention.query_key_value",
            "v": "model.layers.{}.attention.query_key_value",
            "o": "model.layers.{}.attention.dense",
            "up": "model.layers.{}.mlp.dense_h_to_4h",
            "down": "model.layers.{}.mlp.dense_4h_to_h",
            "final_norm": "model.final_layer_norm",
            "unembed": "embed_out",
        },
        prefix="gpt_neox.",
        fused_by_head=keys("q k v"),
        partial_rotary=True,
    ),
}
