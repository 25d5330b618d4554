"""Logits of a checkpoint whose embedding and head are not as config.json says are those of Hugging Face."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pod_job.checkpoints.checkpoint import check_checkpoint, fitted, read_checkpoint
from pod_job.checkpoints.convert import convert
from pod_job.checkpoints.load import load_params
from pod_job.models.arch import read_arch_file
from pod_job.models.decoder import Decoder
from tools.tiny_model import write_tiny_model

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
Tensors = dict[str, np.ndarray]


def other_head(tensors: Tensors) -> Tensors:
    return tensors | {HEAD: np.random.default_rng(5).standard_normal(tensors[EMBEDDING].shape, np.float32)}


def same_head(tensors: Tensors) -> Tensors:
    return tensors | {HEAD: tensors[EMBEDDING].copy()}


def head_alone(tensors: Tensors) -> Tensors:
    return {HEAD if name == EMBEDDING else name: tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("family", "change"), [("llama", other_head), ("llama", same_head), ("llama", head_alone), ("gemma2", other_head)]
)
def test_a_tied_model_with_a_head_of_its_own(
    family: str, change: Callable[[Tensors], Tensors], tmp_path: Path, torch_there: None
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    folder = write_tiny_model(tmp_path / family, family, tied=True, hidden=16, mlp=16, layers=1)
    tensors = change(load_file(folder / "model.safetensors"))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    input_ids = np.random.default_rng(0).integers(0, 256, (1, 9))
    with torch.no_grad():
        truth = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(torch.tensor(input_ids)).logits
    sources = [folder]
    if family == "llama":
        convert(str(folder), tmp_path / "converted")
        sources.append(tmp_path / "converted")
    for source in sources:
        np.testing.assert_allclose(logits(source, input_ids), truth.numpy(), rtol=1e-3, atol=1e-4)


def logits(folder: Path, input_ids: np.ndarray) -> np.ndarray:
    checkpoint = read_checkpoint(folder)
    arch, table = fitted(read_arch_file(folder / "config.json"), checkpoint)
    check_checkpoint(checkpoint, table)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    params = load_params(checkpoint, table, jnp.float32, dict.fromkeys(table, here))
    found, _ = jax.jit(Decoder(arch, (), jnp.float32).apply)(params, jnp.asarray(input_ids))
    return np.asarray(found)


@pytest.mark.parametrize("change", [other_head, same_head, head_alone])
def test_prefill_of_a_tied_model_reads_no_head(change: Callable[[Tensors], Tensors], tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "model", tied=True, hidden=16, mlp=16, layers=1)
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors")
    checkpoint = read_checkpoint(folder)
    _, table = fitted(read_arch_file(folder / "config.json"), checkpoint, head=False)
    check_checkpoint(checkpoint, table)
    assert "unembed" not in table
