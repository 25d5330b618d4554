"""Writes tiny random models as Hugging Face folders, with a byte-level tokenizer: for tests and rehearsed pods.

`python -m tools.tiny_model OUT_DIR --family llama --layers 4 --hidden 128 --heads 8 --kv-heads 8`
"""

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pod_job.checkpoints.hf_folder import HfModel, write_hf_folder
from pod_job.checkpoints.random_model import (
    N_BYTE_TOKENS,
    SPECIAL_TOKENS,
    byte_tokenizer,
    byte_tokenizer_config,
    random_weights,
)
from pod_job.commands.command_line import exit_status
from pod_job.errors import JobError
from pod_job.models.families import CAUSAL, FAMILIES

# A window short enough that a test's prompts reach past it, caps low enough to bend scores and logits of order one.
GEMMA_KEYS: dict[str, Any] = {
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 8,
    "sliding_window": 8,
    "final_logit_softcapping": 6.0,
}
# Heads of a gated delta rule of other sizes than those of attention, in every second layer.
DELTA_KEYS: dict[str, Any] = {
    "full_attention_interval": 2,
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 8,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 12,
    "linear_conv_kernel_dim": 4,
}
SHARED_EXPERT_KEYS: dict[str, Any] = {
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "shared_expert_intermediate_size": 24,
}
FAMILY_KEYS: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": False, "mlp_bias": False},
    "mistral": {"sliding_window": 8},
    "gemma": {"hidden_act": "gelu_pytorch_tanh"},
    "gemma2": GEMMA_KEYS | {"attn_logit_softcapping": 2.0},
    "gemma3_text": GEMMA_KEYS,
    "smollm3": {"no_rope_layer_interval": 2},
    "granite": {
        "embedding_multiplier": 3.0,
        "logits_scaling": 2.5,
        "residual_multiplier": 0.3,
        "attention_multiplier": 0.2,
    },
    "olmo3": {"sliding_window": 8},
    "gpt2": {"activation_function": "gelu_new"},
    "gpt_neox": {"hidden_act": "gelu", "rotary_pct": 0.5},
    "phi3": {"partial_rotary_factor": 0.75},
    "qwen3_moe": {"num_experts": 8, "num_experts_per_tok": 3, "norm_topk_prob": False},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8},
    "qwen3_next": DELTA_KEYS | SHARED_EXPERT_KEYS,
    "qwen3_5_text": DELTA_KEYS,
    "qwen3_5_moe_text": DELTA_KEYS | SHARED_EXPERT_KEYS,
    # A limit low enough to clamp vectors of order one.
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8, "swiglu_limit": 0.7},
}
# Whose configurations mean a fixed head size where they name none, and not hidden // heads.
HEAD_DIM_FAMILIES = ("qwen3", "gemma", "gemma2", "gemma3_text", "qwen3_next", "qwen3_5_text", "qwen3_5_moe_text")


@dataclass(frozen=True)
class TinyModel:
    """A random model of the family; the same values give the same bytes.

    Attributes:
        head_dim: size of one head; None leaves the key out, which means hidden // heads.
        rope_scaling: e.g. `{"rope_type": "llama3", "factor": 8.0, ...}`; None is plain rotary positions.
        old_rope_spelling: writes `rope_theta` and `rope_scaling` (transformers 4), not `rope_parameters` (5).
    """

    family: str = "qwen2"
    layers: int = 3
    hidden: int = 64
    heads: int = 4
    kv_heads: int = 2
    head_dim: int | None = None
    mlp: int = 128
    vocab: int = 320
    tied: bool = False
    rope_theta: float = 10_000.0
    rope_scaling: Mapping[str, Any] | None = None
    old_rope_spelling: bool = False
    max_positions: int = 4096
    seed: int = 0

    def __post_init__(self) -> None:
        if self.family not in CAUSAL:
            known = ", ".join(CAUSAL)
            raise JobError(f"family={self.family}: not a family of tiny models; use one of {known}")
        if self.head_dim is None and self.hidden % self.heads:
            rule = f"does not divide hidden={self.hidden}; change one of them or set head_dim"
            raise JobError(f"heads={self.heads}: {rule}")
        if self.heads % self.kv_heads:
            raise JobError(f"kv_heads={self.kv_heads}: does not divide heads={self.heads}; change one of them")
        if (size := self.head_size) % 2:
            rule = "rotary positions need an even head size; change hidden, heads or head_dim"
            raise JobError(f"head_dim={size}: {rule}")
        smallest = N_BYTE_TOKENS + len(SPECIAL_TOKENS)
        if self.vocab < smallest:
            raise JobError(f"vocab={self.vocab}: too small for the byte tokenizer; use {smallest} or more")

    @property
    def head_size(self) -> int:
        return self.head_dim or self.hidden // self.heads

    def config(self) -> dict[str, Any]:
        """Returns the model's config.json."""
        family = FAMILIES[self.family]
        common = self._common_keys() | self._rope_keys()
        own = {family.own_name(key): value for key, value in common.items() if key not in family.without}
        return own | FAMILY_KEYS.get(self.family, {})

    def _common_keys(self) -> dict[str, Any]:
        named = {"head_dim": self.head_size} if self.head_dim or self.family in HEAD_DIM_FAMILIES else {}
        return {
            "architectures": [FAMILIES[self.family].architecture],
            "model_type": self.family,
            "num_hidden_layers": self.layers,
            "hidden_size": self.hidden,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "intermediate_size": self.mlp,
            "vocab_size": self.vocab,
            "tie_word_embeddings": self.tied,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": self.max_positions,
            "attention_dropout": 0.0,
            "bos_token_id": None,
            "eos_token_id": N_BYTE_TOKENS,
            "pad_token_id": N_BYTE_TOKENS,
            "use_cache": True,
            "torch_dtype": "float32",
            # Not a Hugging Face key: two random models of one shape must not be taken for the same.
            "random_seed": self.seed,
            **named,
        }

    def _rope_keys(self) -> dict[str, Any]:
        """Gemma 3 and OLMo 3 rotate sliding layers at a base of their own; here a tenth of the others'."""
        two_bases, theta, scaling = FAMILIES[self.family].rope_of_layer_type, self.rope_theta, self.rope_scaling
        if self.old_rope_spelling:
            local = {"rope_local_base_freq": theta / 10} if two_bases else {}
            return {"rope_theta": theta, "rope_scaling": scaling, **local}
        rope = {"rope_type": "default", **(scaling or {}), "rope_theta": theta}
        if two_bases:
            local = {"rope_type": "default", "rope_theta": theta / 10}
            return {"rope_parameters": {"full_attention": rope, "sliding_attention": local}}
        return {"rope_parameters": rope}


def write_tiny_model(out_dir: Path, family: str = "qwen2", **fields: Any) -> Path:
    """Writes config.json, float32 model.safetensors and a tokenizer of `TinyModel(family, **fields)`.

    Returns:
        `out_dir`; an equal model already there is kept.
    Raises:
        JobError: an unknown family, sizes that do not fit together, or a folder that holds another model.
    """
    model = TinyModel(family, **fields)
    config = model.config()
    weights = random_weights(config, seed=model.seed)
    return write_hf_folder(
        out_dir, HfModel(config, weights, byte_tokenizer(), byte_tokenizer_config(model.max_positions))
    )


def main(argv: list[str] | None = None) -> int:
    """Runs the command line: sizes as options; prints the folder."""
    parser = argparse.ArgumentParser(prog="python -m tools.tiny_model", description="Write a tiny random model.")
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--family", choices=sorted(CAUSAL), default="qwen2")
    for name in ("layers", "hidden", "heads", "kv_heads", "head_dim", "mlp", "vocab", "max_positions", "seed"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(TinyModel, name))
    parser.add_argument("--rope-theta", type=float, default=TinyModel.rope_theta)
    parser.add_argument("--tied", action="store_true")
    print(write_tiny_model(**vars(parser.parse_args(argv))))
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main))
