"""Weights and a tokenizer of a random model, for examples, tests and rehearsed pods."""

import math
import re
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from pod_job.checkpoints.huggingface import checkpoint_names
from pod_job.models.arch import read_arch
from pod_job.models.families import FAMILIES
from pod_job.models.weight_table import neutral_norm, weight_table

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
N_BYTE_TOKENS = 256


def random_weights(config: dict[str, Any], *, seed: int) -> dict[str, np.ndarray]:
    """Returns float32 weights by Hugging Face name, scaled so that activations stay of order one in every layer.

    Biases (Qwen2: of q, k and v) are not zero and norms not neutral, so that leaving either out shows.
    """
    rng = np.random.default_rng(seed)
    arch = read_arch(config)
    weights = {}
    for name, weight in weight_table(arch).items():
        inputs = weight.part_shape[1 if weight.linear else 0]
        for checkpoint_name in checkpoint_names(weight):
            if checkpoint_name in weights:  # of which this weight is a part
                continue
            drawn = rng.standard_normal(weight.checkpoint_shape, dtype=np.float32)
            if name.endswith("norm"):
                drawn = np.float32(neutral_norm(arch, name)) + np.float32(0.1) * drawn
            elif name.endswith("bias"):
                drawn *= np.float32(0.5)
            elif weight.linear or weight.in_by_out:
                drawn /= np.float32(math.sqrt(inputs))
            weights[checkpoint_name] = drawn
    prefix = FAMILIES[arch.family].prefix
    return {re.sub("^model[.]", prefix, name): drawn for name, drawn in weights.items()}


def byte_tokenizer() -> Tokenizer:
    """Returns a tokenizer without merges: one token per UTF-8 byte, then the special tokens.

    Ids 0..255 are in the order of the byte-level alphabet.
    """
    vocab = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return tokenizer


def byte_tokenizer_config(max_positions: int) -> dict[str, Any]:
    """Returns the tokenizer_config.json of `byte_tokenizer`, with a chat template."""
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
