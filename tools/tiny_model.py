"""Writes tiny random models as Hugging Face folders, with a byte-level tokenizer: for tests and rehearsed pods.

`python -m tools.tiny_model OUT_DIR --family llama --layers 4 --hidden 128 --heads 8 --kv-heads 8`
"""

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from pod_job.checkpoints.huggingface import checkpoint_names
from pod_job.errors import JobError
from pod_job.models.arch import read_arch
from pod_job.models.weight_table import weight_table
from tools.hf_folder import write_hf_folder

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
}
# A window short enough that a test's prompts reach past it, caps low enough to bend scores and logits of order one.
GEMMA_KEYS: dict[str, Any] = {
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 8,
    "sliding_window": 8,
    "final_logit_softcapping": 6.0,
}
FAMILY_KEYS: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": False, "mlp_bias": False},
    "mistral": {"sliding_window": 8},
    "gemma2": GEMMA_KEYS | {"attn_logit_softcapping": 2.0},
    "gemma3_text": GEMMA_KEYS,
}
# Whose configurations mean a fixed head size where they name none, and not hidden // heads.
HEAD_DIM_FAMILIES = ("qwen3", "gemma2", "gemma3_text")
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
N_BYTE_TOKENS = 256


def write_tiny_model(
    out_dir: Path,
    family: str = "qwen2",
    *,
    layers: int = 3,
    hidden: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int | None = None,
    mlp: int = 128,
    vocab: int = 320,
    tied: bool = False,
    rope_theta: float = 10_000.0,
    rope_scaling: dict[str, Any] | None = None,
    old_rope_spelling: bool = False,
    max_positions: int = 4096,
    seed: int = 0,
) -> Path:
    """Write config.json, float32 model.safetensors and a tokenizer for a random model; the same seed, the same bytes.

    Args:
        head_dim: size of one head; None leaves the key out, which means hidden // heads.
        rope_scaling: e.g. `{"rope_type": "llama3", "factor": 8.0, ...}`; None is plain rotary positions.
        old_rope_spelling: write `rope_theta` and `rope_scaling` (transformers 4) rather than `rope_parameters` (5).
    Returns:
        `out_dir`; an equal model already there is kept.
    Raises:
        JobError: an unknown family, sizes that do not fit together, or a folder that holds another model.
    """
    _check_sizes(family, hidden, heads, kv_heads, head_dim, vocab)
    config: dict[str, Any] = {
        "architectures": [ARCHITECTURES[family]],
        "model_type": family,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": mlp,
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": max_positions,
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "eos_token_id": N_BYTE_TOKENS,
        "pad_token_id": N_BYTE_TOKENS,
        "use_cache": True,
        "torch_dtype": "float32",
        # Not a Hugging Face key: two random models of one shape must not be taken for the same.
        "random_seed": seed,
    }
    config |= FAMILY_KEYS.get(family, {})
    if head_dim is not None or family in HEAD_DIM_FAMILIES:
        config["head_dim"] = head_dim or hidden // heads
    config |= _rope_keys(family, rope_theta, rope_scaling, old_rope_spelling)
    return write_hf_folder(
        out_dir,
        config=config,
        weights=random_weights(config, seed=seed),
        tokenizer=byte_tokenizer(),
        tokenizer_config=_tokenizer_config(max_positions),
    )


def _rope_keys(family: str, theta: float, scaling: dict[str, Any] | None, old_spelling: bool) -> dict[str, Any]:
    """Gemma 3 rotates its sliding layers at a base of their own; here a tenth of the others'."""
    local = {"rope_type": "default", "rope_theta": theta / 10}
    if old_spelling:
        two_bases = {"rope_local_base_freq": local["rope_theta"]} if family == "gemma3_text" else {}
        return {"rope_theta": theta, "rope_scaling": scaling, **two_bases}
    rope = {"rope_type": "default", **(scaling or {}), "rope_theta": theta}
    if family == "gemma3_text":
        return {"rope_parameters": {"full_attention": rope, "sliding_attention": local}}
    return {"rope_parameters": rope}


def random_weights(config: dict[str, Any], *, seed: int) -> dict[str, np.ndarray]:
    """float32 weights under their Hugging Face names, scaled so that activations stay of order one in every layer.

    Biases (Qwen2: of q, k and v) are not zero and norms not neutral, so that leaving either out shows.
    """
    rng = np.random.default_rng(seed)
    arch = read_arch(config)
    weights = {}
    for name, weight in weight_table(arch).items():
        for checkpoint_name in checkpoint_names(weight):
            drawn = rng.standard_normal(weight.checkpoint_shape, dtype=np.float32)
            if name.endswith("norm"):
                drawn = np.float32(0 if arch.norm_plus_one else 1) + np.float32(0.1) * drawn
            elif name.endswith("bias"):
                drawn *= np.float32(0.5)
            elif weight.linear:
                drawn /= np.float32(math.sqrt(weight.checkpoint_shape[1]))
            weights[checkpoint_name] = drawn
    return weights


def byte_tokenizer() -> Tokenizer:
    """One token per UTF-8 byte (ids 0..255, in the byte-level alphabet's order), then the special tokens; no merges."""
    vocab = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return tokenizer


def _tokenizer_config(max_positions: int) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": SPECIAL_TOKENS[0],
        "pad_token": SPECIAL_TOKENS[0],
        "model_max_length": max_positions,
        "clean_up_tokenization_spaces": False,
        "chat_template": (
            "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + "
            "'<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
        ),
    }


def _check_sizes(family: str, hidden: int, heads: int, kv_heads: int, head_dim: int | None, vocab: int) -> None:
    if family not in ARCHITECTURES:
        raise JobError(f"family={family}: not a family of tiny models; use one of {', '.join(ARCHITECTURES)}")
    if head_dim is None and hidden % heads:
        raise JobError(f"heads={heads}: does not divide hidden={hidden}; change one of them or set head_dim")
    if heads % kv_heads:
        raise JobError(f"kv_heads={kv_heads}: does not divide heads={heads}; change one of them")
    size = head_dim or hidden // heads
    if size % 2:
        raise JobError(f"head_dim={size}: rotary positions need an even head size; change hidden, heads or head_dim")
    smallest = N_BYTE_TOKENS + len(SPECIAL_TOKENS)
    if vocab < smallest:
        raise JobError(f"vocab={vocab}: too small for the byte tokenizer; use {smallest} or more")


def main(argv: list[str] | None = None) -> int:
    """The command line: sizes as options, one line of result or of error."""
    parser = argparse.ArgumentParser(prog="python -m tools.tiny_model", description="Write a tiny random model.")
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--family", choices=sorted(ARCHITECTURES), default="qwen2")
    for name, default in (("layers", 3), ("hidden", 64), ("heads", 4), ("kv-heads", 2), ("mlp", 128), ("vocab", 320)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--head-dim", type=int, default=None)
    parser.add_argument("--rope-theta", type=float, default=10_000.0)
    parser.add_argument("--max-positions", type=int, default=4096)
    parser.add_argument("--tied", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    options = vars(parser.parse_args(argv))
    try:
        print(write_tiny_model(**options))
    except JobError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
