"""Phi-3 and Phi-4: Llama's layers with fused projections, a partly rotated head, and longrope."""

from pod_job.models.families.family import Family, keys

FAMILIES = {
    "phi3": Family(
        architecture="Phi3ForCausalLM",
        applied=keys("hidden_act sliding_window partial_rotary_factor original_max_position_embeddings"),
        inert=keys("resid_pdrop embd_pdrop"),
        modules={
            "q": "model.layers.{}.self_attn.qkv_proj",
            "k": "model.layers.{}.self_attn.qkv_proj",
            "v": "model.layers.{}.self_attn.qkv_proj",
            "gate": "model.layers.{}.mlp.gate_up_proj",
            "up": "model.layers.{}.mlp.gate_up_proj",
        },
        partial_rotary=True,
    ),
}
