"""Tensors by their Hugging Face names are the same in every form of a checkpoint."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from pod_job.checking.hf_tensors import HfTensors
from pod_job.checkpoints.checkpoint import Checkpoint, read_checkpoint
from pod_job.checkpoints.convert import convert
from pod_job.models.arch import read_arch_file
from pod_job.models.families import FAMILIES
from pod_job.models.weight_table import weight_table
from tools.tiny_model import write_tiny_model


def folder_of(tmp_path: Path, family: str) -> Path:
    # No two sizes of a tensor are alike: 2 layers, hidden 48, 4 heads of 8, 2 of keys, mlp 80.
    return write_tiny_model(tmp_path / "model", family=family, layers=2, hidden=48, head_dim=8, mlp=80)


@pytest.mark.parametrize("form", ["safetensors", "converted"])
# With biases; with norms of heads, and tied; fused by rows, by columns and head by head.
@pytest.mark.parametrize("family", ["qwen2", "gemma3_text", "phi3", "gpt2", "gpt_neox"])
def test_each_tensor_is_that_of_the_file(tmp_path: Path, family: str, form: str) -> None:
    folder = folder_of(tmp_path, family)
    table = weight_table(read_arch_file(folder / "config.json"))
    checkpoint: Checkpoint = read_checkpoint(folder)
    if form == "converted":
        checkpoint = convert(str(folder), tmp_path / "converted")
    tensors, truth = HfTensors(checkpoint, table), load_file(folder / "model.safetensors")
    truth = {f"model.{name.removeprefix(FAMILIES[family].prefix)}": tensor for name, tensor in truth.items()}
    truth = {
        name.replace("model.lm_head", "lm_head").replace("model.embed_out", "embed_out"): truth[name] for name in truth
    }
    assert len(truth) > 10
    for name, tensor in truth.items():
        found = tensors.read(name)
        assert found.dtype == np.float32, name
        np.testing.assert_array_equal(found, tensor, err_msg=name)
    token_ids = np.array([7, 0, 319, 7])
    np.testing.assert_array_equal(tensors.embedding(token_ids), truth[table["embed"].checkpoint_name][token_ids])


def test_a_tensor_that_no_weight_has_is_an_error(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "qwen2")
    converted = convert(str(folder), tmp_path / "converted")
    with pytest.raises(KeyError, match=r"o_proj\.bias"):
        HfTensors(converted, weight_table(read_arch_file(folder / "config.json"))).read("o_proj.bias")
