"""Converted checkpoints: the same weights and the same identity as their source, and never half of one."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import orbax.checkpoint as orbax
import pytest
from golden_models import GOLDENS
from sample_runs import folders

from pod_job.checkpoints import convert as converting
from pod_job.checkpoints.checkpoint import check_checkpoint, fingerprint, read_checkpoint
from pod_job.checkpoints.convert import convert
from pod_job.checkpoints.load import load_params
from pod_job.commands.convert import main
from pod_job.config.load import load
from pod_job.config.schema import MeshConfig, Sharding
from pod_job.errors import JobError
from pod_job.models.arch import read_arch_file
from pod_job.models.mesh import make_mesh, weight_shardings
from pod_job.models.weight_table import weight_table
from pod_job.planning.inputs import read_inputs
from pod_job.run_folder.identity import Identity
from pod_job.storage.folder import Folder
from tools.tiny_model import write_tiny_model

CASE = GOLDENS / "qwen2_full"
TABLE = weight_table(read_arch_file(CASE / "config.json"))


@pytest.fixture(params=["local", "bucket"])
def new_folder(
    request: pytest.FixtureRequest, tmp_path: Path, require: Callable[[bool, str], None]
) -> Iterator[Callable[[], Folder]]:
    with folders(request.param, tmp_path, require) as make:
        yield make


@pytest.mark.parametrize("sharding", Sharding)
def test_slices_of_a_converted_checkpoint_are_those_of_its_source(
    new_folder: Callable[[], Folder], sharding: Sharding
) -> None:
    converted = convert(str(CASE), new_folder().url)
    check_checkpoint(converted, TABLE)
    assert fingerprint(converted) == fingerprint(read_checkpoint(CASE))
    shardings = weight_shardings(make_mesh(MeshConfig(data=4, model=2)), sharding, TABLE)
    found, truth = (
        load_params(each, TABLE, np.float32, shardings)["params"] for each in (converted, read_checkpoint(CASE))
    )
    for name in TABLE:
        np.testing.assert_array_equal(found[name], truth[name])


def test_orbax_itself_restores_it(tmp_path: Path) -> None:
    converted = convert(str(CASE), tmp_path / "out")
    with orbax.Checkpointer(orbax.PyTreeCheckpointHandler(use_zarr3=True)) as checkpointer:
        found = checkpointer.restore(tmp_path / "out" / converted.manifest.path)["params"]
    assert {name: array.shape for name, array in found.items()} == {name: w.shape for name, w in TABLE.items()}


def test_a_run_may_go_on_with_the_converted_model(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "tiny")
    convert(str(model), tmp_path / "elsewhere")

    def identity(path: Path) -> Identity:
        overrides = [f"model.path={path}", "tasks=arc_sample", "tasks.limit=2", f"storage.run_dir={tmp_path}/run"]
        return read_inputs(load([*overrides, "extract.too_long=tail"])).identity

    assert identity(tmp_path / "elsewhere") == identity(model)


def test_a_conversion_that_was_cut_short_is_no_checkpoint_and_is_done_again(
    new_folder: Callable[[], Folder], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = new_folder()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(converting, "create_or_match", killed)
        with pytest.raises(KeyboardInterrupt):
            convert(str(CASE), out.url)
    left = out.names("weights-")
    assert left
    with pytest.raises(JobError, match=r"converted\.json that a conversion writes last"):
        read_checkpoint(out)
    converted = convert(str(CASE), out.url)
    names = out.names("weights-")
    assert names
    assert not set(left) & set(names)
    assert all(name.startswith(f"{converted.manifest.path}/") for name in names)
    assert convert(str(CASE), out.url).manifest.path == converted.manifest.path


def test_another_model_and_damage_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main([str(CASE), str(out)]) == 0
    assert main([str(GOLDENS / "llama_full"), str(out)]) == 2
    assert main([str(out), str(tmp_path / "again")]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert "holds another model (qwen2_full); name another folder" in errors[0]
    assert "is converted already; use it as model.path" in errors[1]
    manifest = json.loads((out / "converted.json").read_text())
    shutil.rmtree(out / manifest["path"])
    with pytest.raises(JobError, match=r"weight embed cannot be read .*; convert the model again"):
        load_params(
            read_checkpoint(out),
            TABLE,
            np.float32,
            weight_shardings(make_mesh(MeshConfig(data=8)), Sharding.replicated, TABLE),
        )
    del manifest["weights"]["q"]
    (out / "converted.json").write_text(json.dumps(manifest))
    with pytest.raises(JobError, match=r"weight q \[.*\] is missing"):
        check_checkpoint(read_checkpoint(out), TABLE)
    (out / "converted.json").write_text("{")
    with pytest.raises(JobError, match=r"converted\.json is damaged"):
        read_checkpoint(out)


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(folder: Path, *_: object) -> None:
        (folder.parent / f"{folder.name}.orbax-checkpoint-tmp").mkdir()
        raise ValueError("RESOURCE_EXHAUSTED: No space left on device\nand more")

    mine = tmp_path / "out" / f"{converting.WEIGHTS}mine"
    mine.mkdir(parents=True)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 9))
        with pytest.raises(JobError, match=r"OUT=.*: 9 bytes are free, the weights are .* kB; free some"):
            convert(str(CASE), tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(converting, "write_orbax", full)
        with pytest.raises(
            JobError, match=r"OUT=.*: cannot be written \(RESOURCE_EXHAUSTED: No space left on device\)"
        ):
            convert(str(CASE), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == [mine]
    convert(str(CASE), tmp_path / "out")
    assert mine.exists()
