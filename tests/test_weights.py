"""Checkpoints: read by slices, and refused by the name of the tensor that is wrong."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import GOLDENS
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import load_file, save_file

from pod_job.config import MeshConfig, Sharding
from pod_job.errors import JobError
from pod_job.mesh import make_mesh, weight_shardings
from pod_job.models.arch import read_arch_file
from pod_job.models.weight_table import weight_table
from pod_job.models.weights import check_checkpoint, find_model, fingerprint, load_params, read_checkpoint

CASE = GOLDENS / "qwen2_full"
TABLE = weight_table(read_arch_file(CASE / "config.json"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("config.json", "model.safetensors"):
        shutil.copy(CASE / name, tmp_path / name)
    return tmp_path


def rewrite(folder: Path, **changes: np.ndarray | None) -> None:
    tensors = load_file(folder / "model.safetensors") | changes
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, folder / "model.safetensors")


def test_slices_on_devices_make_up_the_whole() -> None:
    mesh = make_mesh(MeshConfig(data=2, model=4))
    split = weight_shardings(mesh, Sharding.fsdp, TABLE)
    whole = dict.fromkeys(TABLE, NamedSharding(mesh, PartitionSpec()))
    checkpoint = read_checkpoint(CASE)
    parts, all_of_it = (load_params(checkpoint, TABLE, np.float32, s)["params"] for s in (split, whole))
    for name in TABLE:
        np.testing.assert_array_equal(parts[name], all_of_it[name])
    torch_q = checkpoint["model.layers.1.self_attn.q_proj.weight"]
    np.testing.assert_array_equal(np.asarray(parts["q"])[1].reshape(torch_q.shape[1], -1), torch_q.T)


def test_a_sharded_checkpoint_reads_as_the_whole_one(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    files = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in files.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in files.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert fingerprint(read_checkpoint(folder)) == fingerprint(read_checkpoint(CASE))
    (folder / "b.safetensors").unlink()
    with pytest.raises(JobError, match=r"b\.safetensors is named in model\.safetensors\.index\.json but missing"):
        read_checkpoint(folder)
    shutil.copy(folder / "a.safetensors", folder / "b.safetensors")
    with pytest.raises(JobError, match=r"tensor .* of b\.safetensors is in another file too"):
        read_checkpoint(folder)


def test_the_fingerprint_sees_a_changed_weight(folder: Path) -> None:
    before = fingerprint(read_checkpoint(folder))
    name = "model.layers.2.mlp.up_proj.weight"
    rewrite(folder, **{name: load_file(folder / "model.safetensors")[name] + 1})
    assert fingerprint(read_checkpoint(folder)) != before


NORM = "model.layers.0.input_layernorm.weight"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({NORM: None}, f"tensor {NORM} [32] is missing"),
        ({NORM: np.ones(5, np.float32)}, f"tensor {NORM} is [5], but config.json says [32]"),
        ({"model.layers.7.x": np.ones(5, np.float32)}, "tensor model.layers.7.x is not part of this model (1 such)"),
    ],
)
def test_a_wrong_tensor_is_named(folder: Path, changes: dict[str, np.ndarray | None], says: str) -> None:
    rewrite(folder, **changes)
    with pytest.raises(JobError) as refused:
        check_checkpoint(read_checkpoint(folder), TABLE)
    assert says in str(refused.value)


def test_derived_tensors_are_passed_over(folder: Path) -> None:
    rewrite(folder, **{"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)})
    check_checkpoint(read_checkpoint(folder), TABLE)


def test_a_truncated_file_is_refused(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(JobError, match=r"model\.safetensors"):
        read_checkpoint(folder)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"has neither model\.safetensors nor model\.safetensors\.index\.json"):
        read_checkpoint(tmp_path)


def test_a_path_that_is_neither_folder_nor_hub_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="is not a folder; give a Hugging Face folder or a hub name"):
        find_model(str(tmp_path / "none"))
    assert find_model(str(tmp_path)) == tmp_path
