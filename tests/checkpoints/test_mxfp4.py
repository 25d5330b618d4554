"""Weights in MXFP4 are read as transformers dequantizes them; other quantized weights are refused by name."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pod_job.checkpoints.checkpoint import check_checkpoint, fitted, read_checkpoint
from pod_job.checkpoints.load import load_params
from pod_job.config.schema import MeshConfig, Sharding
from pod_job.errors import JobError
from pod_job.models import create_model_with_hooks
from pod_job.models.arch import read_arch_file
from pod_job.models.mesh import make_mesh, weight_shardings
from tools.tiny_model import write_tiny_model

LAYERS = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gpt-oss whose experts have random bytes as blocks, with scales that make numbers of order one."""
    folder = write_tiny_model(tmp_path_factory.mktemp("mxfp4") / "model", "gpt_oss", layers=LAYERS)
    rng, tensors = np.random.default_rng(0), load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith("_proj") and "experts" in name]:
        experts, inputs, outputs = tensors.pop(name).shape
        tensors[f"{name}_blocks"] = rng.integers(0, 256, (experts, outputs, inputs // 32, 16), np.uint8)
        tensors[f"{name}_scales"] = rng.integers(118, 126, (experts, outputs, inputs // 32)).astype(np.uint8)
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("sharding", Sharding)
def test_weights_are_those_that_transformers_dequantizes(sharding: Sharding, folder: Path, torch_there: None) -> None:
    from pod_job.checking.hf_reference import load_reference

    checkpoint = read_checkpoint(folder)
    _, table = fitted(read_arch_file(folder / "config.json"), checkpoint)
    check_checkpoint(checkpoint, table)
    shardings = weight_shardings(make_mesh(MeshConfig(data=2, model=4)), sharding, table)
    params = jax.tree.map(np.asarray, load_params(checkpoint, table, np.float32, shardings)["params"])
    truth = {name: tensor.detach().numpy() for name, tensor in load_reference(folder).named_parameters()}
    for layer in range(LAYERS):
        experts = f"model.layers.{layer}.mlp.experts"
        np.testing.assert_array_equal(params["gate"][layer], truth[f"{experts}.gate_up_proj"][..., ::2])
        np.testing.assert_array_equal(params["up"][layer], truth[f"{experts}.gate_up_proj"][..., 1::2])
        np.testing.assert_array_equal(params["down"][layer], truth[f"{experts}.down_proj"])
        np.testing.assert_array_equal(params["up_bias"][layer], truth[f"{experts}.gate_up_proj_bias"][:, 1::2])


def test_every_tap_equals_hugging_face(folder: Path, torch_there: None) -> None:
    from pod_job.checking.hf_reference import load_reference, run_reference

    ids = np.random.default_rng(0).integers(0, 256, (2, 12)).astype(np.int32)
    arch, table = fitted(read_arch_file(folder / "config.json"), checkpoint := read_checkpoint(folder))
    everywhere = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    params = load_params(checkpoint, table, np.float32, dict.fromkeys(table, everywhere))
    model = create_model_with_hooks(arch, taps=[f"layer_{LAYERS - 1}*"])
    run = jax.jit(lambda params, ids: model.apply(params, ids, return_activations=True, return_logits=False))
    truth = run_reference(load_reference(folder), ids)
    for name, found in run(params, ids)[1].items():
        np.testing.assert_allclose(found, truth[name], rtol=1e-4, atol=1e-4 * np.abs(truth[name]).max())


@pytest.mark.parametrize("damage", ["no scales", "wider blocks", "another dtype"])
def test_blocks_of_another_kind_are_refused_by_name(damage: str, folder: Path, tmp_path: Path) -> None:
    tensors, name = load_file(folder / "model.safetensors"), "model.layers.1.mlp.experts.down_proj"
    match damage:
        case "no scales":
            tensors.pop(f"{name}_scales")
        case "wider blocks":
            tensors[f"{name}_blocks"] = np.repeat(tensors[f"{name}_blocks"], 2, axis=-1)
        case _:
            tensors[f"{name}_scales"] = tensors[f"{name}_scales"].astype(np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    checkpoint = read_checkpoint(tmp_path)
    _, table = fitted(read_arch_file(folder / "config.json"), checkpoint)
    with pytest.raises(JobError, match=rf"tensor {name}_blocks says that the weights are quantized \(MXFP4\)"):
        check_checkpoint(checkpoint, table)


@pytest.mark.parametrize(
    ("family", "method", "says"),
    [("gpt_oss", "fp8", r"\(fp8\); use the model's mxfp4, bf"), ("mixtral", "mxfp4", r"\(mxfp4\); use the model's bf")],
)
def test_other_kinds_of_quantized_weights_are_refused_by_name(
    family: str, method: str, says: str, tmp_path: Path
) -> None:
    folder = write_tiny_model(tmp_path / family, family)
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": {"quant_method": method}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(JobError, match=f"quantization_config says that the weights are quantized {says}"):
        read_arch_file(folder / "config.json")
