"""A checkpoint is loaded under every name that Hugging Face's loader takes, and what is no plain model is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from golden_models import GOLDENS
from safetensors.numpy import load_file, save_file

from pod_job.checkpoints.checkpoint import check_checkpoint, read_checkpoint
from pod_job.checkpoints.huggingface import TensorFiles, unread_tensors
from pod_job.checkpoints.load import load_params
from pod_job.checkpoints.locate import find_model
from pod_job.checkpoints.tensor_names import canonical
from pod_job.errors import JobError
from pod_job.models.arch import read_arch_file
from pod_job.models.weight_table import weight_table
from tools.tiny_model import write_tiny_model

CASE = GOLDENS / "qwen2_full"
TABLE = weight_table(read_arch_file(CASE / "config.json"))
TENSORS = load_file(CASE / "model.safetensors")
Q = "model.layers.1.self_attn.q_proj.weight"


def saved(folder: Path, tensors: dict[str, np.ndarray]) -> TensorFiles:
    shutil.copy(CASE / "config.json", folder)
    save_file(tensors, folder / "model.safetensors")
    checkpoint = read_checkpoint(folder)
    assert isinstance(checkpoint, TensorFiles)
    return checkpoint


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: f"module.{name}",
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module._orig_mod.{name}",
        lambda name: f"base_model.model.{name}",
        lambda name: name.replace("q_proj.weight", "q_proj.base_layer.weight"),
        lambda name: name.replace("model.", "model.language_model.", 1),
        lambda name: f"language_model.{name}",
        lambda name: name.removeprefix("model."),
    ],
    ids=["parallel", "compiled", "both", "peft", "base_layer", "vision", "vision-old", "no-head"],
)
def test_names_of_wrappers_and_other_classes_are_the_same_model(rename: Callable[[str], str], tmp_path: Path) -> None:
    checkpoint = saved(tmp_path, {rename(name): tensor for name, tensor in TENSORS.items()})
    check_checkpoint(checkpoint, TABLE)
    np.testing.assert_array_equal(checkpoint.read_rows(Q, 0, len(TENSORS[Q])), TENSORS[Q])


KINDS = [np.float32, np.float16, np.float64, ml_dtypes.bfloat16]


@pytest.mark.parametrize("kinds", [[kind] for kind in KINDS] + [KINDS], ids=lambda kinds: np.dtype(kinds[-1]).name)
def test_weights_of_each_kind_of_float_and_of_several_are_read_as_they_are(kinds: list[type], tmp_path: Path) -> None:
    stored = {name: tensor.astype(kinds[i % len(kinds)]) for i, (name, tensor) in enumerate(sorted(TENSORS.items()))}
    checkpoint = saved(tmp_path, stored)
    check_checkpoint(checkpoint, TABLE)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    params = load_params(checkpoint, TABLE, np.float32, dict.fromkeys(TABLE, here))["params"]
    np.testing.assert_array_equal(params["embed"], stored["model.embed_tokens.weight"].astype(np.float32))
    q = np.asarray(params["q"])[1].reshape(TENSORS[Q].shape[1], -1).T
    np.testing.assert_array_equal(q, stored[Q].astype(np.float32))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model.layers.9.mlp.up_proj.weight": "a.safetensors"}, None),  # named, and nowhere: nothing needs it
        ({Q: "b.safetensors"}, None),  # named in another file than it is in
        ({Q: "../a.safetensors"}, r"'\.\./a\.safetensors' is not a name inside"),
        ({Q: "c.safetensors"}, r"c\.safetensors is named in model\.safetensors\.index\.json but missing"),
    ],
)
def test_an_index_that_is_off_costs_no_tensor(change: dict[str, str], says: str | None, tmp_path: Path) -> None:
    shutil.copy(CASE / "config.json", tmp_path)
    names = sorted(TENSORS)
    files = {name: "a.safetensors" if name in names[::2] else "b.safetensors" for name in names}
    for file in ("a.safetensors", "b.safetensors"):
        save_file({name: TENSORS[name] for name in names if files[name] == file}, tmp_path / file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files | change}))
    if says:
        with pytest.raises(JobError, match=says):
            read_checkpoint(tmp_path)
        return
    checkpoint = read_checkpoint(tmp_path)
    check_checkpoint(checkpoint, TABLE)
    assert isinstance(checkpoint, TensorFiles)
    np.testing.assert_array_equal(checkpoint.read_rows(Q, 0, len(TENSORS[Q])), TENSORS[Q])


def test_heads_of_other_tasks_are_left_unread_and_named(tmp_path: Path) -> None:
    heads = {"score.weight": np.zeros((2, 4), np.float32), "v_head.summary.bias": np.zeros(1, np.float32)}
    checkpoint = saved(tmp_path, TENSORS | heads)
    check_checkpoint(checkpoint, TABLE)
    assert unread_tensors(checkpoint, TABLE) == ["score.weight", "v_head.summary.bias"]


def test_a_tensor_within_the_layers_that_the_model_lacks_is_refused(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path, TENSORS | {"model.layers.0.self_attn.sinks": np.zeros(4, np.float32)})
    with pytest.raises(JobError, match=r"tensor model\.layers\.0\.self_attn\.sinks is not part of this model"):
        check_checkpoint(checkpoint, TABLE)


@pytest.mark.parametrize(
    ("added", "scheme"),
    [
        (f"{Q}_scale_inv", "fp8 with block scales"),
        (Q.replace("weight", "qweight"), "GPTQ or AWQ"),
        (f"{Q}.absmax", "bitsandbytes, 4 bits"),
        (Q.replace("weight", "SCB"), "bitsandbytes, 8 bits"),
        ("model.layers.0.mlp.experts.gate_up_proj_blocks", "MXFP4"),
        (f"{Q}_packed", "compressed-tensors"),
        (f"{Q}_scale", "weights with scales"),
    ],
)
def test_a_quantized_checkpoint_is_refused_by_its_scheme(added: str, scheme: str, tmp_path: Path) -> None:
    without = {name: tensor for name, tensor in TENSORS.items() if name != Q}
    checkpoint = saved(tmp_path, without | {added: np.zeros((4, 4), np.float32)})
    with pytest.raises(JobError, match=rf"says that the weights are quantized \({scheme}"):
        check_checkpoint(checkpoint, TABLE)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, ml_dtypes.float8_e4m3fn])
def test_weights_of_another_kind_of_number_are_refused(dtype: type, tmp_path: Path) -> None:
    checkpoint = saved(tmp_path, TENSORS | {Q: TENSORS[Q].astype(dtype)})
    with pytest.raises(JobError, match=rf"tensor {Q} is \w+, as in a quantized model; use weights in float32"):
        check_checkpoint(checkpoint, TABLE)


def test_an_adapter_that_was_not_merged_is_refused(tmp_path: Path) -> None:
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    checkpoint = saved(tmp_path, TENSORS | {name: np.zeros((2, 4), np.float32)})
    with pytest.raises(JobError, match=r"lora_A\.weight belongs to an adapter that is not merged"):
        check_checkpoint(checkpoint, TABLE)


@pytest.mark.parametrize("base", ["org/base", None])
@pytest.mark.parametrize("model", [True, False])
def test_an_adapter_is_refused_alone_and_beside_a_model(model: bool, base: str | None, tmp_path: Path) -> None:
    if model:
        write_tiny_model(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": base}))
    said = f"an adapter{f' of {base}' if base else ''} is there, and adapters are not applied; merge it"
    with pytest.raises(JobError, match=said):
        find_model(str(tmp_path))


def test_one_tensor_under_two_names_is_refused(tmp_path: Path) -> None:
    checkpoint = TENSORS | {f"module.{Q}": TENSORS[Q]}
    with pytest.raises(JobError, match="is there under another name too"):
        saved(tmp_path, checkpoint)


def test_parts_of_the_vision_model_are_no_tensors_of_the_text_model() -> None:
    assert canonical("model.vision_tower.encoder.layers.0.weight") is None
    assert canonical("language_model.layers.0.mlp.up_proj.weight") == "model.layers.0.mlp.up_proj.weight"
