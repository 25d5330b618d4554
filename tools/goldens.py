"""Makes tests/goldens, the reference of the model tests: the value of every tap in Hugging Face's torch models.

`python -m tools.goldens` rewrites the tiny models and their arrays; `--demo-model DIR` also rewrites the arrays of the
real model (DIR from `python -m tools.demo_model DIR`). Needs torch.
"""

import argparse
import copy
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from pod_job.checking.hf_reference import load_reference, run_reference

GOLDENS = Path("tests/goldens")
BATCH, SEQ, VOCAB = 2, 12, 96
DEMO_PROMPT = "The capital of France is Paris, and"
PLAIN_ROPE = {"rope_type": "default", "rope_theta": 1000.0}
# Short wavelengths, so that twelve positions reach all three bands of the formula: unchanged, blended, divided.
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 1000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN_ROPE = PLAIN_ROPE | {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "beta_fast": 4.0}
GEMMA3_ROPE = {
    "full_attention": PLAIN_ROPE | {"rope_type": "linear", "factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
}
# A third of the sequence, so that most positions have keys outside the window.
WINDOW = {"sliding_window": 4}
# A scale other than the head's, and caps low enough to change scores and logits of order one.
GEMMA: dict[str, Any] = WINDOW | {
    "head_dim": 12,
    "query_pre_attn_scalar": 8,
    "final_logit_softcapping": 6.0,
    "pad_token_id": None,
}
CASES: dict[str, dict[str, Any]] = {
    "qwen2_full": {"family": "qwen2", "kv_heads": 4},
    "qwen2_grouped_tied_old_rope": {"family": "qwen2", "kv_heads": 2, "tie_word_embeddings": True, "old_rope": True},
    "qwen2_multiquery": {"family": "qwen2", "kv_heads": 1},
    "qwen2_window_yarn_old_rope": {
        "family": "qwen2",
        "kv_heads": 2,
        "old_rope": True,
        "use_sliding_window": True,
        "max_window_layers": 1,
        "rope_parameters": YARN_ROPE,
        **WINDOW,
    },
    "qwen3_grouped_head_dim_tied": {"family": "qwen3", "kv_heads": 2, "head_dim": 12, "tie_word_embeddings": True},
    "llama_full": {"family": "llama", "kv_heads": 4},
    "llama_grouped_head_dim_tied": {"family": "llama", "kv_heads": 2, "head_dim": 12, "tie_word_embeddings": True},
    "llama_multiquery_llama3_old_rope": {
        "family": "llama",
        "kv_heads": 1,
        "rope_parameters": LLAMA3_ROPE,
        "old_rope": True,
    },
    "llama_grouped_biases": {"family": "llama", "kv_heads": 2, "attention_bias": True, "mlp_bias": True},
    "mistral_window": {"family": "mistral", "kv_heads": 2, **WINDOW},
    "gemma2_grouped": {"family": "gemma2", "kv_heads": 2, "attn_logit_softcapping": 2.0, **GEMMA},
    "gemma3_grouped": {
        "family": "gemma3_text",
        "kv_heads": 2,
        "rope_parameters": GEMMA3_ROPE,
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        **GEMMA,
    },
    "gemma3_multiquery_old_rope": {
        "family": "gemma3_text",
        "kv_heads": 1,
        "old_rope": True,
        "rope_parameters": GEMMA3_ROPE,
        "sliding_window_pattern": 2,
        **GEMMA,
    },
}


def write_case(name: str, out_dir: Path) -> None:
    """Writes a tiny model and its taps as `out_dir`/{config.json, model.safetensors, expected.safetensors}.

    Raises:
        RuntimeError: transformers computes other values from the folder than the model that was saved.
    """
    case = dict(CASES[name])
    old_rope = case.pop("old_rope", False)
    torch.manual_seed(sum(name.encode()))
    model = _random_model(**case)
    input_ids = torch.randint(VOCAB, (BATCH, SEQ)).numpy().astype(np.int32)
    expected = run_reference(model, input_ids)
    shutil.rmtree(out_dir, ignore_errors=True)
    model.save_pretrained(out_dir)
    (out_dir / "generation_config.json").unlink(missing_ok=True)
    if old_rope:
        _use_old_rope_keys(out_dir / "config.json")
    save_file({"input_ids": input_ids, **expected}, out_dir / "expected.safetensors")
    reloaded = run_reference(load_reference(out_dir), input_ids)
    different = [tap for tap in expected if not np.array_equal(expected[tap], reloaded[tap])]
    if different:
        raise RuntimeError(f"{out_dir}: the saved model computes other values of {', '.join(different)}")


def _random_model(*, family: str, kv_heads: int, **keys: Any) -> PreTrainedModel:
    sizes = {
        "num_hidden_layers": 3,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": kv_heads,
        "intermediate_size": 24,
        "vocab_size": VOCAB,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_parameters": PLAIN_ROPE,
        "bos_token_id": None,
        "eos_token_id": 0,
    }
    config = AutoConfig.for_model(family, **copy.deepcopy(sizes | keys))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    neutral = 0.0 if family.startswith("gemma") else 1.0
    with torch.no_grad():
        # Norms away from neutral and biases away from zero, so that leaving one out shows; the rest of order one.
        for parameter_name, parameter in model.named_parameters():
            if "norm" in parameter_name:
                parameter.normal_(neutral, 0.2)
            elif parameter_name.endswith("bias"):
                parameter.normal_(0.0, 0.5)
            else:
                parameter.normal_(0.0, 1.0 if "embed" in parameter_name else parameter.shape[-1] ** -0.5)
    return model


def _use_old_rope_keys(config_file: Path) -> None:
    """Rewrites keys of transformers 5 as those of transformers 4, which most checkpoints on the hub still have."""
    config = json.loads(config_file.read_text())
    rope = config.pop("rope_parameters")
    if "sliding_attention" in rope:
        config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        config["sliding_window_pattern"] = config.pop("_sliding_window_pattern")
        rope = rope["full_attention"]
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    config["torch_dtype"] = config.pop("dtype")
    for newer_key in ("layer_types", "transformers_version"):
        config.pop(newer_key, None)
    if config.get("use_sliding_window") is False:
        # As in Qwen2.5's files: a window that is not used. It is short enough for tests to see if it were.
        config |= {"use_sliding_window": False, "sliding_window": 4}
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def write_demo_golden(model_dir: Path, out_file: Path) -> None:
    """Writes the real model's layers and final norm [1, S, D] for one prompt; `logits` [1, 1, V] of its last token."""
    input_ids = np.array([AutoTokenizer.from_pretrained(model_dir)(DEMO_PROMPT)["input_ids"]], np.int32)
    taps = run_reference(load_reference(model_dir), input_ids)
    layers = {name: tap for name, tap in taps.items() if name.startswith("layer_") and "." not in name}
    save_file({"input_ids": input_ids, **layers, "logits": taps["logits"][:, -1:].copy()}, out_file)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; prints each folder or file that it wrote, with its size."""
    parser = argparse.ArgumentParser(prog="python -m tools.goldens", description="Rewrite tests/goldens with torch.")
    parser.add_argument("--demo-model", type=Path, help="folder of SmolLM2-135M; its golden arrays are rewritten too")
    options = parser.parse_args(argv)
    disable_progress_bar()
    written = [GOLDENS / name for name in CASES]
    for folder in written:
        write_case(folder.name, folder)
    if options.demo_model:
        written.append(GOLDENS / "smollm2_135m.safetensors")
        write_demo_golden(options.demo_model, written[-1])
    for path in written:
        # safetensors makes files that only their owner can read.
        for file in [path] if path.is_file() else path.iterdir():
            file.chmod(0o644)
        size = path.stat().st_size if path.is_file() else sum(f.stat().st_size for f in path.iterdir())
        print(f"{path}  {size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
