"""Tensors of a checkpoint under the names that Llama's have, for `numpy_decoder`: fused ones are taken apart.

D hidden, N query heads, H head size.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from pod_job.checking.numpy_rotary import head_size

KINDS = ("weight", "bias")
Read = Callable[[str], np.ndarray]
"""Returns a tensor by its name in the checkpoint, in float32."""
GEMMA = ("gemma", "gemma2", "gemma3_text")
OLMO = ("olmo2", "olmo3")
POST_NORMS = ("gemma2", "gemma3_text", *OLMO)
OUTER_MODULES = {
    "gpt2": ("model.wte", "model.ln_f", "lm_head"),
    "gpt_neox": ("model.embed_in", "model.final_layer_norm", "embed_out"),
}
"""Names of the embedding, the final norm and the output matrix where they are not Llama's."""
GPT2_MODULES = {
    "ln_1": "input_layernorm",
    "attn.c_proj": "self_attn.o_proj",
    "ln_2": "post_attention_layernorm",
    "mlp.c_fc": "mlp.up_proj",
    "mlp.c_proj": "mlp.down_proj",
}
NEOX_MODULES = {
    "input_layernorm": "input_layernorm",
    "post_attention_layernorm": "post_attention_layernorm",
    "mlp.dense_h_to_4h": "mlp.up_proj",
    "mlp.dense_4h_to_h": "mlp.down_proj",
}


def outer_modules(config: Any) -> tuple[str, str, str]:
    """Returns the names of the embedding, the final norm and the output matrix."""
    embedding, norm, head = OUTER_MODULES.get(config.model_type, ("model.embed_tokens", "model.norm", "lm_head"))
    return embedding, norm, embedding if config.tie_word_embeddings else head


def layer_tensors(config: Any, i: int, read: Read) -> dict[str, np.ndarray]:
    """Returns the tensors of layer i; matrices lie [out, in]."""
    match config.model_type:
        case "gpt2":
            return gpt2_tensors(lambda name: read(f"model.h.{i}.{name}"))
        case "gpt_neox":
            return neox_tensors(config, lambda name: read(f"model.layers.{i}.{name}"))
    tensors = {name: read(f"model.layers.{i}.{name}") for name in tensor_names(config)}
    return phi_tensors(config, tensors) if config.model_type == "phi3" else tensors


def gpt2_tensors(read: Read) -> dict[str, np.ndarray]:
    """Returns tensors of GPT-2, whose matrices lie [in, out]; queries, keys and values are one of them."""
    tensors = {}
    for own, name in GPT2_MODULES.items():
        tensors |= {f"{name}.weight": read(f"{own}.weight").T, f"{name}.bias": read(f"{own}.bias")}
    for kind in KINDS:
        fused = np.split(read(f"attn.c_attn.{kind}").T, 3)
        tensors |= {f"self_attn.{name}_proj.{kind}": part for name, part in zip("qkv", fused, strict=True)}
    return tensors


def neox_tensors(config: Any, read: Read) -> dict[str, np.ndarray]:
    """Returns tensors of GPT-NeoX, where query, key and value of a head lie one behind the other."""
    tensors = {f"{name}.{kind}": read(f"{own}.{kind}") for own, name in NEOX_MODULES.items() for kind in KINDS}
    for kind in KINDS if config.attention_bias else KINDS[:1]:
        tensors[f"self_attn.o_proj.{kind}"] = read(f"attention.dense.{kind}")
        fused = read(f"attention.query_key_value.{kind}")
        of_heads = fused.reshape(config.num_attention_heads, 3, head_size(config), *fused.shape[1:])
        for at, name in enumerate("qkv"):
            tensors[f"self_attn.{name}_proj.{kind}"] = of_heads[:, at].reshape(-1, *fused.shape[1:])
    return tensors


def phi_tensors(config: Any, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns tensors of Phi-3, where queries, keys and values are one matrix, and so are gate and up."""
    queries, keys = (head_size(config) * heads for heads in (config.num_attention_heads, config.num_key_value_heads))
    qkv = np.split(tensors.pop("self_attn.qkv_proj.weight"), [queries, queries + keys])
    gate_up = np.split(tensors.pop("mlp.gate_up_proj.weight"), 2)
    names = [f"self_attn.{name}_proj.weight" for name in "qkv"] + ["mlp.gate_proj.weight", "mlp.up_proj.weight"]
    return tensors | dict(zip(names, [*qkv, *gate_up], strict=True))


def tensor_names(config: Any) -> list[str]:
    """Returns the names of a layer's tensors, after `model.layers.{i}.`."""
    family, bias = config.model_type, bool(getattr(config, "attention_bias", False))
    names = ["post_attention_layernorm.weight", *(["input_layernorm.weight"] if family not in OLMO else [])]
    if family == "phi3":
        fused = "self_attn.qkv_proj self_attn.o_proj mlp.gate_up_proj mlp.down_proj"
        return names + [f"{name}.weight" for name in fused.split()]
    if family in POST_NORMS:
        names += ["post_feedforward_layernorm.weight"]
        names += ["pre_feedforward_layernorm.weight"] if family not in OLMO else []
    if family in ("qwen3", "gemma3_text", *OLMO):
        names += ["self_attn.q_norm.weight", "self_attn.k_norm.weight"]
    for projection in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"):
        names.append(f"{projection}.weight")
        if bias or (family == "qwen2" and projection != "self_attn.o_proj"):
            names.append(f"{projection}.bias")
    for projection in ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"):
        names += [f"{projection}.weight", *([f"{projection}.bias"] if getattr(config, "mlp_bias", False) else [])]
    return names
