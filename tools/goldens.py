"""Makes the committed truth of tests/goldens: what Hugging Face's torch models compute, tap by tap.

`python -m tools.goldens` rewrites the tiny models and their arrays, `--demo-model DIR` also those of the real model
(DIR from `python -m tools.demo_model DIR`). Needs torch. `run_reference` serves the live parity tests as well.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from safetensors.numpy import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedModel, Qwen2Config
from transformers.utils.logging import disable_progress_bar

GOLDENS = Path("tests/goldens")
BATCH, SEQ, VOCAB = 2, 12, 96
DEMO_PROMPT = "The capital of France is Paris, and"
# Short wavelengths, so that twelve positions reach all three bands of the formula: kept, blended, divided.
LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CASES: dict[str, dict[str, Any]] = {
    "qwen2_full": {"family": "qwen2", "kv_heads": 4},
    "qwen2_grouped_tied_old_rope": {"family": "qwen2", "kv_heads": 2, "tie_word_embeddings": True, "old_rope": True},
    "qwen2_multiquery": {"family": "qwen2", "kv_heads": 1},
    "llama_full": {"family": "llama", "kv_heads": 4},
    "llama_grouped_head_dim_tied": {"family": "llama", "kv_heads": 2, "head_dim": 12, "tie_word_embeddings": True},
    "llama_multiquery_llama3_old_rope": {"family": "llama", "kv_heads": 1, "scaling": LLAMA3_SCALING, "old_rope": True},
    "llama_grouped_biases": {"family": "llama", "kv_heads": 2, "attention_bias": True, "mlp_bias": True},
}


def load_reference(folder: Path) -> PreTrainedModel:
    """The folder's model in float32 with plain ("eager") attention, ready for `run_reference`."""
    torch.set_float32_matmul_precision("highest")
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def run_reference(model: PreTrainedModel, input_ids: Int[np.ndarray, "B S"]) -> dict[str, np.ndarray]:
    """Every tap of one forward pass over unpadded rows, taken with forward hooks on the torch modules.

    Hooks, because the last entry of `output_hidden_states` is the final norm's output and not the last layer's.

    Args:
        model: a causal model of Llama's module layout (Llama, Qwen2, Qwen3, Mistral), see `load_reference`.
    Returns:
        float32 arrays [B, S, width]: `embed`, `logits`, the final norm's output `layer_{L}_norm`, the output
        `layer_{i}` of each decoder layer and its sites `layer_{i}.SITE`: resid_pre, resid_mid, attn_out, mlp_out,
        mlp_act (input of down_proj), q, k, v (projections with bias, before the rotation), z (input of o_proj).
    """
    with _taps_recorded(model) as taps, torch.inference_mode():
        taps["logits"] = model(input_ids=torch.from_numpy(np.asarray(input_ids, np.int64)), use_cache=False).logits
    # Copies: a residual stream may be changed in place by what follows, and arrays must own their memory.
    return {name: tap.float().numpy().copy() for name, tap in taps.items()}


@contextmanager
def _taps_recorded(model: PreTrainedModel) -> Iterator[dict[str, torch.Tensor]]:
    taps: dict[str, torch.Tensor] = {}
    hooks: list[Any] = []

    def keep(name: str, tensor: torch.Tensor) -> None:
        taps[name] = tensor.detach().clone()

    def on_input(name: str) -> Callable[..., None]:
        return lambda _module, args, kwargs: keep(name, args[0] if args else kwargs["hidden_states"])

    def on_output(name: str) -> Callable[..., None]:
        return lambda _module, _args, output: keep(name, output[0] if isinstance(output, tuple) else output)

    def record(module: Any, *, before: str | None = None, after: str | None = None) -> None:
        if before:
            hooks.append(module.register_forward_pre_hook(on_input(before), with_kwargs=True))
        if after:
            hooks.append(module.register_forward_hook(on_output(after)))

    decoder: Any = model.model
    record(decoder.embed_tokens, after="embed")
    for i, layer in enumerate(decoder.layers):
        tap, attention, mlp = f"layer_{i}", layer.self_attn, layer.mlp
        record(layer, before=f"{tap}.resid_pre", after=tap)
        record(attention.q_proj, after=f"{tap}.q")
        record(attention.k_proj, after=f"{tap}.k")
        record(attention.v_proj, after=f"{tap}.v")
        record(attention.o_proj, before=f"{tap}.z", after=f"{tap}.attn_out")
        record(layer.post_attention_layernorm, before=f"{tap}.resid_mid")
        record(mlp.down_proj, before=f"{tap}.mlp_act", after=f"{tap}.mlp_out")
    record(decoder.norm, after=f"layer_{len(decoder.layers)}_norm")
    try:
        yield taps
    finally:
        for hook in hooks:
            hook.remove()


def write_case(name: str, out_dir: Path) -> None:
    """Write one tiny model and its taps as `out_dir`/{config.json, model.safetensors, expected.safetensors}.

    Raises:
        RuntimeError: the folder, loaded back by transformers, does not compute the same.
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
        _respell_rope(out_dir / "config.json")
    save_file({"input_ids": input_ids, **expected}, out_dir / "expected.safetensors")
    reloaded = run_reference(load_reference(out_dir), input_ids)
    different = [tap for tap in expected if not np.array_equal(expected[tap], reloaded[tap])]
    if different:
        raise RuntimeError(f"{out_dir}: loading it back changed {', '.join(different)}")


def _random_model(
    *, family: str, kv_heads: int, head_dim: int | None = None, scaling: dict[str, Any] | None = None, **keys: Any
) -> PreTrainedModel:
    if head_dim is not None:
        keys["head_dim"] = head_dim
    config = {"qwen2": Qwen2Config, "llama": LlamaConfig}[family](
        num_hidden_layers=3,
        hidden_size=32,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        intermediate_size=24,
        vocab_size=VOCAB,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", **(scaling or {}), "rope_theta": 1000.0},
        bos_token_id=None,
        eos_token_id=0,
        **keys,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        # Norms away from one and biases away from zero, so that leaving one out shows; the rest of order one.
        for parameter_name, parameter in model.named_parameters():
            if "norm" in parameter_name:
                parameter.normal_(1.0, 0.2)
            elif parameter_name.endswith("bias"):
                parameter.normal_(0.0, 0.5)
            else:
                parameter.normal_(0.0, 1.0 if "embed" in parameter_name else parameter.shape[-1] ** -0.5)
    return model


def _respell_rope(config_file: Path) -> None:
    """Turn transformers 5's keys into those of transformers 4, which most checkpoints on the hub still carry."""
    config = json.loads(config_file.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    config["torch_dtype"] = config.pop("dtype")
    for newer_key in ("layer_types", "transformers_version"):
        config.pop(newer_key, None)
    if "use_sliding_window" in config:
        # As in Qwen2.5's own files: a window is named and not used. This one is short enough to show if it were.
        config |= {"use_sliding_window": False, "sliding_window": 4}
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def write_demo_golden(model_dir: Path, out_file: Path) -> None:
    """Write the real model's decoder layers and final norm [1, S, D] for one prompt; `logits` [1, 1, V] of its end."""
    input_ids = np.array([AutoTokenizer.from_pretrained(model_dir)(DEMO_PROMPT)["input_ids"]], np.int32)
    taps = run_reference(load_reference(model_dir), input_ids)
    kept = {name: tap for name, tap in taps.items() if name.startswith("layer_") and "." not in name}
    save_file({"input_ids": input_ids, **kept, "logits": taps["logits"][:, -1:].copy()}, out_file)


def main(argv: list[str] | None = None) -> int:
    """The command line; prints each folder or file that it wrote, with its size."""
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
        # safetensors makes private files; these are for everyone who checks the repository out.
        for file in [path] if path.is_file() else path.iterdir():
            file.chmod(0o644)
        size = path.stat().st_size if path.is_file() else sum(f.stat().st_size for f in path.iterdir())
        print(f"{path}  {size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
