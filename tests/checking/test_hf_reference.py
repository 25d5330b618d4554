"""Hugging Face's model for the gate: its vectors are those of the whole model in float32, at the cost of few passes."""

from collections import Counter
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  so that numpy knows bfloat16 by its name
import numpy as np
import pytest

from pod_job.checkpoints.hf_folder import HfModel, write_hf_folder
from pod_job.checkpoints.random_model import byte_tokenizer, byte_tokenizer_config, random_weights
from tools.tiny_model import TinyModel

LAYERS, LAST, HIDDEN = 4, 2, 96  # whose root, Gemma's factor on embeddings, has more digits than bfloat16
SEQUENCES = [np.random.default_rng(0).integers(0, 256, length).astype(np.int32) for length in (64, 32)]


def write_model(folder: Path, family: str, dtype: str, mixed: bool = False) -> Path:
    """Writes a tiny model with all weights in the dtype; with `mixed` its norms in float32."""
    model = TinyModel(family, layers=LAYERS, hidden=HIDDEN)
    weights = {
        name: weight if mixed and "norm" in name else weight.astype(np.dtype(dtype))
        for name, weight in random_weights(model.config(), seed=0).items()
    }
    return write_hf_folder(folder, HfModel(model.config(), weights, byte_tokenizer(), byte_tokenizer_config(4096)))


@pytest.mark.parametrize(
    ("family", "stored", "mixed"),
    [
        ("qwen2", "bfloat16", False),
        ("qwen2", "bfloat16", True),
        ("granite", "float16", False),
        ("gemma3_text", "bfloat16", False),  # its factor on embeddings would be rounded to bfloat16
        ("gpt2", "float32", False),
    ],
)
def test_its_vectors_are_those_of_the_whole_model_in_float32(
    tmp_path: Path, torch_there: None, family: str, stored: str, mixed: bool
) -> None:
    from pod_job.checking.hf_reference import hf_taps, load_reference, run_reference

    folder = write_model(tmp_path / "model", family, stored, mixed)
    names = {"embed", f"layer_{LAST}", f"layer_{LAST}.z", f"layer_{LAST}.mlp_in"}
    truths, errors = hf_taps(folder, SEQUENCES, names, "bfloat16")
    whole = load_reference(folder)
    for name, truth in truths.items():
        apart = [run_reference(whole, sequence[None], names)[name][0] for sequence in SEQUENCES]
        np.testing.assert_array_equal(truth, np.concatenate(apart))
    assert all(1e-4 < np.median(rows) < 0.1 for name, rows in errors.items() if name != "embed")


def test_it_costs_two_passes_of_the_layers_up_to_the_last_tap_and_the_memory_of_one_layer(
    tmp_path: Path, torch_there: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from pod_job.checking import hf_cast
    from pod_job.checking.hf_reference import hf_taps, load_as_stored

    folder, calls, positions, spaces = write_model(tmp_path / "model", "qwen2", "bfloat16"), Counter(), [], []

    def count(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        calls[type(module).__name__] += 1
        if type(module).__name__ == "Qwen2DecoderLayer":
            positions.append(args[0].shape[0] * args[0].shape[1])

    class Counted(hf_cast.WeightSpace):
        def __init__(self, dtype: torch.dtype) -> None:
            super().__init__(dtype)
            spaces.append(self)

    monkeypatch.setattr(hf_cast, "WeightSpace", Counted)
    hook = torch.nn.modules.module.register_module_forward_pre_hook(count)
    try:
        hf_taps(folder, SEQUENCES, {f"layer_{LAST}"}, "bfloat16")
    finally:
        hook.remove()
    assert calls["Qwen2DecoderLayer"] == 2 * (LAST + 1)
    assert calls["Qwen2ForCausalLM"] == 0  # whose head is as large as several layers
    assert max(positions) <= 1.5 * sum(map(len, SEQUENCES))
    layer = load_as_stored(folder).model.layers[0]
    values = sum(parameter.numel() for parameter in layer.parameters())
    assert sum(tensor.nbytes for space in spaces for tensor in space.memory.values()) == 4 * (
        values + HIDDEN
    )  # and the last norm


@pytest.mark.parametrize(
    ("lengths", "rope", "passes"),
    [
        ([32, 64], "default", [[1, 0]]),
        ([64, 32, 32, 32], "default", [[0, 1, 2], [3]]),
        ([1056, 32], "default", [[0], [1]]),
        ([1056, 32, 20, 32], "default", [[0], [1, 3, 2]]),
        ([64, 64], "dynamic", [[0], [1]]),
        ([5], "yarn", [[0]]),
    ],
)
def test_sequences_share_a_pass_where_little_is_padding_and_the_length_of_a_row_does_not_matter(
    torch_there: None, lengths: list[int], rope: str, passes: list[list[int]]
) -> None:
    from transformers import LlamaConfig, LlamaModel

    from pod_job.checking.hf_reference import forward_passes

    scaling = {"rope_type": rope, "rope_theta": 1e4, "factor": 2.0}
    sizes: dict[str, Any] = {"hidden_size": 8, "num_attention_heads": 1, "intermediate_size": 8, "num_hidden_layers": 1}
    model = LlamaModel(LlamaConfig(**sizes, vocab_size=8, rope_parameters=scaling))
    assert forward_passes(model, lengths) == passes
