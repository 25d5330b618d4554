"""A small model and ARC tasks, which the examples make themselves: they need no download."""

import json
from pathlib import Path

from pod_job.checkpoints.hf_folder import HfModel, write_hf_folder
from pod_job.checkpoints.random_model import N_BYTE_TOKENS, byte_tokenizer, byte_tokenizer_config, random_weights

MAX_POSITIONS = 2048
CONFIG = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "num_hidden_layers": 4,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 320,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "max_position_embeddings": MAX_POSITIONS,
    "tie_word_embeddings": False,
    "eos_token_id": N_BYTE_TOKENS,
    "torch_dtype": "float32",
}
"""config.json of a Qwen2 of four layers with 160,000 random weights; its tokens are bytes."""
TASKS = {
    "mirrored": {
        "train": [
            {"input": [[1, 2, 0], [3, 0, 0]], "output": [[0, 2, 1], [0, 0, 3]]},
            {"input": [[4, 0], [5, 6]], "output": [[0, 4], [6, 5]]},
        ],
        "test": [{"input": [[7, 0, 1]], "output": [[1, 0, 7]]}],
    },
    "recolored": {
        "train": [{"input": [[1, 0], [0, 1]], "output": [[2, 0], [0, 2]]}],
        "test": [{"input": [[1, 1], [0, 0]], "output": [[2, 2], [0, 0]]}],
    },
}
"""Two tasks as in an ARC file: mirror the grid; color 1 becomes 2."""


def write_small_model(folder: Path) -> Path:
    """Writes the model as a Hugging Face folder, which is returned; one that is there already stays."""
    weights = random_weights(CONFIG, seed=0)
    return write_hf_folder(folder, HfModel(CONFIG, weights, byte_tokenizer(), byte_tokenizer_config(MAX_POSITIONS)))


def write_small_tasks(path: Path) -> Path:
    """Writes the tasks as an ARC file, which is returned."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(TASKS))
    return path
