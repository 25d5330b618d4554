"""Checkpoints: read by slices, and refused by the name of the tensor that is wrong."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from golden_models import GOLDENS
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import load_file, save_file
from sample_runs import folders

from pod_job.checkpoints.checkpoint import check_checkpoint, fingerprint, read_checkpoint
from pod_job.checkpoints.huggingface import TensorFiles
from pod_job.checkpoints.load import column_axis, fill_from_tensors, load_params, read_by_exchange
from pod_job.checkpoints.locate import find_model
from pod_job.config.schema import MeshConfig, Sharding
from pod_job.environment import STORAGE_EMULATOR
from pod_job.errors import JobError
from pod_job.models.arch import read_arch_file
from pod_job.models.mesh import make_mesh, weight_shardings
from pod_job.models.weight_table import weight_table
from tools.bench.workloads.loading import CountingFolder, copy_to_bucket, load
from tools.bucket import bucket_available, bucket_server
from tools.tiny_model import write_tiny_model

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
    torch_q = load_file(CASE / "model.safetensors")["model.layers.1.self_attn.q_proj.weight"]
    np.testing.assert_array_equal(np.asarray(parts["q"])[1].reshape(torch_q.shape[1], -1), torch_q.T)


@pytest.fixture(params=["local", "bucket"])
def counted(
    request: pytest.FixtureRequest, tmp_path: Path, require: Callable[[bool, str], None]
) -> Iterator[CountingFolder]:
    with folders(request.param, tmp_path, require) as make:
        folder = make()
        for name in ("config.json", "model.safetensors"):
            folder.create(name, [(CASE / name).read_bytes()])
        yield CountingFolder(folder)


@pytest.mark.parametrize("sharding", [Sharding.fsdp, Sharding.tensor])
@pytest.mark.parametrize("mesh", [MeshConfig(data=4, model=2), MeshConfig(data=2, model=4)], ids=["4x2", "2x4"])
def test_rows_that_devices_exchange_make_up_their_columns(sharding: Sharding, mesh: MeshConfig) -> None:
    """Hosts exchange rows for columns as the devices of one host do here."""
    shardings = weight_shardings(make_mesh(mesh), sharding, TABLE)
    checkpoint = read_checkpoint(CASE)
    assert isinstance(checkpoint, TensorFiles)
    exchanged = {name: axis for name in TABLE if (axis := column_axis(TABLE[name], shardings[name])) is not None}
    assert exchanged
    truth = load_params(checkpoint, TABLE, np.float32, shardings)["params"]
    for name, axis in exchanged.items():
        found = read_by_exchange(checkpoint, TABLE[name], np.float32, shardings[name], axis)
        assert found.sharding.is_equivalent_to(shardings[name], found.ndim)
        np.testing.assert_array_equal(found, truth[name])


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with experts, fused projections and layers of two kinds."""
    folder = tmp_path_factory.mktemp("mixture") / "model"
    return write_tiny_model(folder, "qwen3_next", layers=2, hidden=64, heads=4, kv_heads=4, mlp=32)


def test_experts_and_parts_of_fused_tensors_are_exchanged_as_they_are_read(mixture: Path) -> None:
    table, mesh = weight_table(read_arch_file(mixture / "config.json")), make_mesh(MeshConfig(data=2, model=4))
    shardings, checkpoint = weight_shardings(mesh, Sharding.fsdp, table), read_checkpoint(mixture)
    assert isinstance(checkpoint, TensorFiles)
    names = ("gate", "q", "attn_gate", "delta_v", "delta_decay", "router")
    truth = load_params(checkpoint, {name: table[name] for name in names}, np.float32, shardings)["params"]
    for name in names:
        axis = column_axis(table[name], shardings[name])
        assert axis is not None
        found = read_by_exchange(checkpoint, table[name], np.float32, shardings[name], axis)
        np.testing.assert_array_equal(found, truth[name])


def test_experts_of_a_layer_in_one_tensor_are_read_as_those_by_themselves(mixture: Path, tmp_path: Path) -> None:
    tensors = load_file(mixture / "model.safetensors")
    for layer in range(2):
        module = f"model.layers.{layer}.mlp.experts"
        gate, up, down = (
            np.stack([tensors.pop(f"{module}.{expert}.{name}.weight") for expert in range(8)])
            for name in ("gate_proj", "up_proj", "down_proj")
        )
        tensors |= {f"{module}.gate_up_proj": np.concatenate([gate, up], axis=1), f"{module}.down_proj": down}
    shutil.copy(mixture / "config.json", tmp_path)
    save_file(tensors, tmp_path / "model.safetensors")
    one, several = read_checkpoint(tmp_path), read_checkpoint(mixture)
    check_checkpoint(one, table := weight_table(read_arch_file(mixture / "config.json")))
    experts = {name: table[name] for name in ("gate", "up", "down")}
    whole = dict.fromkeys(experts, NamedSharding(make_mesh(MeshConfig(data=8, model=1)), PartitionSpec()))
    found, truth = (load_params(checkpoint, experts, np.float32, whole)["params"] for checkpoint in (one, several))
    for name in experts:
        np.testing.assert_array_equal(found[name], truth[name])


def test_each_byte_is_read_once_however_many_devices_hold_it(counted: CountingFolder) -> None:
    checkpoint = read_checkpoint(counted)
    assert fingerprint(checkpoint) == fingerprint(read_checkpoint(CASE))
    assert isinstance(checkpoint, TensorFiles)
    weights = sum(tensor.spec.stop - tensor.spec.start for tensor in checkpoint.tensors.values())
    for sharding in Sharding:
        counted.bytes = 0
        load_params(
            checkpoint, TABLE, np.float32, weight_shardings(make_mesh(MeshConfig(data=4, model=2)), sharding, TABLE)
        )
        assert counted.bytes == weights


def test_of_a_slice_only_its_rows_are_read(counted: CountingFolder) -> None:
    checkpoint, weight = read_checkpoint(counted), TABLE["gate"]
    assert isinstance(checkpoint, TensorFiles)
    layers, hidden, mlp = weight.shape
    counted.bytes = 0
    part = np.empty((layers, hidden, mlp // 4), np.float32)
    fill_from_tensors(checkpoint)(weight, {((0, layers), (0, hidden), (mlp // 4, mlp // 2)): part})
    assert counted.bytes == part.nbytes
    np.testing.assert_array_equal(
        part[1].T, load_file(CASE / "model.safetensors")["model.layers.1.mlp.gate_proj.weight"][mlp // 4 : mlp // 2]
    )


def test_a_bucket_s_model_is_found_checked_and_named(
    tmp_path: Path, require: Callable[[bool, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path / "cache"))
    with folders("bucket", tmp_path, require) as make:
        folder = make()
        with pytest.raises(JobError, match=r"model\.path=gs://.* has no config\.json"):
            find_model(folder.url)
        folder.create("adapter_config.json", [b"{}"])
        with pytest.raises(JobError, match="an adapter is there"):
            find_model(folder.url)
        folder.remove("adapter_config.json")
        for name in ("config.json", "model.safetensors"):
            folder.create(name, [(CASE / name).read_bytes()])
        folder.create("tokenizer.json", [b"{}"])
        found = find_model(folder.url)
        assert found.name == folder.url.rpartition("/")[2]
        assert sorted(path.name for path in found.directory.iterdir()) == ["config.json", "tokenizer.json"]
        check_checkpoint(read_checkpoint(found.weights), TABLE)
        folder.replace("tokenizer.json", b"{ }")
        assert (find_model(folder.url).directory / "tokenizer.json").read_text() == "{ }"
        whole = (CASE / "model.safetensors").read_bytes()
        for damaged in (whole[:-100], whole + b"x"):
            folder.replace("model.safetensors", damaged)
            with pytest.raises(
                JobError, match=r"model\.safetensors: not a usable safetensors file: (truncated|it has)"
            ):
                read_checkpoint(folder)


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
    for damaged in (whole[:-100], whole + b"x"):
        (folder / "model.safetensors").write_bytes(damaged)
        with pytest.raises(JobError, match=r"model\.safetensors: not a usable safetensors file: (truncated|it has)"):
            read_checkpoint(folder)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"has neither model\.safetensors nor model\.safetensors\.index\.json"):
        read_checkpoint(tmp_path)


def test_a_path_that_is_neither_folder_nor_hub_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="is not a folder; give a Hugging Face folder or a hub name"):
        find_model(str(tmp_path / "none"))
    found = find_model(str(tmp_path))
    assert (found.name, found.directory, found.weights.url) == (tmp_path.name, tmp_path, str(tmp_path))


@pytest.mark.pod
@pytest.mark.parametrize("sharding", ["fsdp", "tensor"])
def test_each_of_several_hosts_reads_as_many_bytes_as_it_holds(
    tmp_path: Path, sharding: str, require: Callable[[bool, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    require(bucket_available() is None, "the bucket emulator")
    model = write_tiny_model(tmp_path / "model", hidden=256, heads=8, kv_heads=4, mlp=512)
    with bucket_server(tmp_path / "served", "models") as endpoint:
        monkeypatch.setenv(STORAGE_EMULATOR, endpoint)
        copy_to_bucket(model, "gs://models/folder")
        for host in load("gs://models/folder", 4, sharding):
            assert host["read_bytes"] <= 1.01 * host["share_bytes"]
