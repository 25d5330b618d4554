"""Training goes on after any kill with the same weights, on another mesh too, and ends in SAEs with their record."""

import json
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from job_processes import finish, start
from safetensors.numpy import load_file
from sample_runs import TAPS, batch, identity

from pod_job.config.load import load
from pod_job.errors import JobError
from pod_job.finishing.merge import merge
from pod_job.host.rendezvous import Host
from pod_job.host.reporter import Reporter
from pod_job.host.stop_request import StopRequest
from pod_job.job import keep_tokenizer
from pod_job.models.mesh import make_mesh
from pod_job.planning.training import TrainInputs, claim_training, read_train_inputs
from pod_job.planning.training_memory import check_buffer, training_memory
from pod_job.run_folder.commit import commit_batch
from pod_job.run_folder.identity import claim
from pod_job.run_folder.layout import TOKENIZER
from pod_job.run_folder.training import read_metrics, read_training
from pod_job.storage.open import open_folder
from pod_job.training.checkpoint_writer import CheckpointWriter
from pod_job.training.output import write_saes
from pod_job.training.plans import make_trainer
from pod_job.training.run import run_source
from pod_job.training.train import Training
from pod_job.training.trainer import Trainer

STEPS = 14
CHECKPOINT_STEPS = 3
SAES = "[{tap:[layer_6,layer_30_norm],latents:32,k:2},{tap:layer_6,latents:32,k:4}]"


class Killed(Exception):
    """Stands for the end of the process."""


@dataclass
class Stage:
    """A finished run to train on, and trainers by mesh, which are compiled once."""

    source: Path
    trainers: dict[tuple[int, int], Trainer]

    def overrides(self, out: Path, mesh: tuple[int, int] = (2, 2)) -> list[str]:
        settings = {"train.run": self.source, "storage.run_dir": out, "train.saes": SAES, "train.steps": STEPS}
        settings |= {"train.batch_rows": 16, "train.buffer_rows": 64, "train.statistics_rows": 32, "train.epochs": 9}
        settings |= {"train.dtype": "float32", "train.warmup_steps": 3, "train.log_steps": 1}
        settings |= {"train.checkpoint_steps": CHECKPOINT_STEPS, "mesh.data": mesh[0], "mesh.model": mesh[1]}
        settings |= {"sharding": "tensor", "mode": "train", "train.source": "run"}
        return [f"{key}={value}" for key, value in settings.items()]

    def inputs(self, out: Path, mesh: tuple[int, int] = (2, 2), *overrides: str) -> TrainInputs:
        devices = f"pod.devices_per_host={mesh[0] * mesh[1]}"
        return read_train_inputs(load([*self.overrides(out, mesh), devices, *overrides]))

    def start(self, out: Path, mesh: tuple[int, int] = (2, 2), kill_at: int | None = None, *overrides: str) -> None:
        """Runs one start of the job to its end, or until it is killed in the step `kill_at`."""
        inputs = self.inputs(out, mesh, *overrides)
        claim_training(inputs)
        on = make_mesh(inputs.config.mesh, jax.devices()[: mesh[0] * mesh[1]])
        trainer = self.trainers.setdefault(mesh, make_trainer(inputs.train, inputs.widths, on, inputs.config.sharding))
        with (
            Reporter(inputs.folder, Host(0, 1, "test", None)) as reporter,
            CheckpointWriter(inputs.folder, inputs.train, 0, 1) as writer,
        ):
            training = Mortal(inputs, run_source(inputs, on), trainer, writer, reporter)
            training.kill_at = kill_at
            state = training.run(training.begin(), StopRequest())
            assert state is not None
            write_saes(inputs, trainer, state.trainer, training.seconds)


class Mortal(Training):
    """Training that is killed in one of its steps."""

    kill_at: int | None = None

    def _advance(self, state: Any, step: int, rows: Any) -> Any:
        if step == self.kill_at:
            raise Killed
        return super()._advance(state, step, rows)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    source = tmp_path_factory.mktemp("training") / "source"
    folder = open_folder(source)
    claim(folder, identity(8 * 3))
    for number in (1, 2, 3):
        commit_batch(folder, batch(number, 20), host=0)
    merge(folder)
    folder.create(TOKENIZER, [b"{}"])
    return Stage(source, {})


@pytest.fixture(scope="module")
def undisturbed(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    stage.start(out)
    return out


def weights(out: Path) -> dict[str, dict[str, np.ndarray]]:
    files = sorted(out.glob("saes/*/sae_weights.safetensors"))
    assert len(files) == 3
    return {file.parent.name: load_file(file) for file in files}


def kills() -> list[list[int]]:
    rng = random.Random(7)
    return [[CHECKPOINT_STEPS, STEPS - 1], [0], *(sorted(rng.sample(range(STEPS), 3)) for _ in range(2))]


@pytest.mark.pod
@pytest.mark.parametrize("kill_steps", kills(), ids=str)
def test_weights_after_kills_are_those_of_the_undisturbed_run_bit_by_bit(
    stage: Stage, undisturbed: Path, kill_steps: list[int], tmp_path: Path
) -> None:
    for step in kill_steps:
        with pytest.raises(Killed):
            stage.start(tmp_path, kill_at=step)
    stage.start(tmp_path)
    expected = weights(undisturbed)
    for name, tensors in weights(tmp_path).items():
        for tensor, values in tensors.items():
            np.testing.assert_array_equal(values, expected[name][tensor], err_msg=f"{name} {tensor}")
    curves, again = read_metrics(open_folder(undisturbed)), read_metrics(open_folder(tmp_path))
    assert curves is not None
    assert again is not None
    assert again.points[-1].saes == curves.points[-1].saes


@pytest.mark.pod  # compiled a second time
def test_a_start_on_another_mesh_ends_in_the_same_weights_within_rounding(
    stage: Stage, undisturbed: Path, tmp_path: Path
) -> None:
    with pytest.raises(Killed):
        stage.start(tmp_path, kill_at=8)
    stage.start(tmp_path, (4, 1))
    expected = weights(undisturbed)
    for name, tensors in weights(tmp_path).items():
        for tensor, values in tensors.items():
            np.testing.assert_allclose(values, expected[name][tensor], atol=1e-4, err_msg=f"{name} {tensor}")


@pytest.mark.pod
def test_two_hosts_end_in_the_weights_of_one_and_go_on_bit_by_bit(
    stage: Stage, undisturbed: Path, tmp_path: Path
) -> None:
    finish(start(stage.overrides(tmp_path / "hosts"), 2, 2))
    finished = weights(tmp_path / "hosts")
    expected = weights(undisturbed)
    for name, tensors in finished.items():
        for tensor, values in tensors.items():
            np.testing.assert_allclose(values, expected[name][tensor], atol=1e-4, err_msg=f"{name} {tensor}")
    shutil.copytree(tmp_path / "hosts", tmp_path / "killed")
    shutil.rmtree(tmp_path / "killed/saes")
    for record in tmp_path.glob(f"killed/training/checkpoints/step_{STEPS:09d}/host_01.json"):
        record.unlink()  # host 1 was killed before it had written it
    finish(start(stage.overrides(tmp_path / "killed"), 2, 2))
    for name, tensors in weights(tmp_path / "killed").items():
        for tensor, values in tensors.items():
            np.testing.assert_array_equal(values, finished[name][tensor], err_msg=f"{name} {tensor}")


@pytest.mark.pod  # compiled a second time
def test_a_restart_finds_the_programs_of_the_one_before(stage: Stage, tmp_path: Path) -> None:
    cache, killed = tmp_path / "cache", tmp_path / "run"
    with pytest.raises(Killed):
        Stage(stage.source, {}).start(killed, (1, 1), STEPS - 1, f"storage.compile_cache={cache}")
    stored = {path.name for path in cache.glob("*-cache")}
    for program in ("only_fill", "exchange_and_train", "take_and_train"):
        assert [name for name in stored if name.startswith(f"jit_{program}-")]
    jax.clear_caches()
    Stage(stage.source, {}).start(killed, (1, 1), None, f"storage.compile_cache={cache}")
    assert {path.name for path in cache.glob("*-cache")} == stored


def test_saes_of_a_run_keep_its_tokenizer(stage: Stage, tmp_path: Path) -> None:
    """Their page shows texts wherever the folder is."""
    inputs = stage.inputs(tmp_path)
    keep_tokenizer(inputs)
    assert inputs.folder.read(TOKENIZER) == b"{}"


def test_the_record_names_every_sae_and_what_it_was_trained_on(stage: Stage, undisturbed: Path) -> None:
    trained = read_training(open_folder(undisturbed))
    assert trained.complete
    assert (trained.steps, trained.rows) == (STEPS, 16 * STEPS)
    assert {entry.sae.name for entry in trained.saes} == set(weights(undisturbed))
    assert trained.provenance.train is not None
    assert trained.provenance.train.run is not None
    assert trained.provenance.taps == list(TAPS)
    metrics = read_metrics(open_folder(undisturbed))
    assert metrics is not None
    assert [point.step for point in metrics.points] == list(range(1, STEPS + 1))
    status = json.loads((undisturbed / "status/host_00.json").read_text())
    assert status["training"]["step"] == STEPS


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.seed=1", "train.seed is 0 there, 1 here"),
        ("train.batch_rows=32", "train.batch_rows is 16 there, 32 here"),
        ("train.saes=[{tap:layer_6,latents:32,k:2}]", "train.saes"),
        ("train.steps=13", "train.steps is 14 there, 13 here"),
    ],
)
def test_another_training_is_refused_with_the_difference(
    stage: Stage, undisturbed: Path, override: str, said: str
) -> None:
    with pytest.raises(JobError, match=said) as refused:
        stage.inputs(undisturbed, (2, 2), override)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("without", "said"),
    [
        ("a byte", r"train\.buffer_rows=64: .* use train.buffer_rows=48 or less"),
        ("the buffer", r"train\.saes: .* fewer latents"),
    ],
)
def test_a_memory_that_is_too_small_is_named_by_what_takes_it(
    stage: Stage, tmp_path: Path, without: str, said: str
) -> None:
    inputs = stage.inputs(tmp_path)
    memory = training_memory(inputs)
    check_buffer(inputs, memory.total, "a device")
    with pytest.raises(JobError, match=said):
        check_buffer(inputs, memory.total - (1 if without == "a byte" else memory.buffer), "a device")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["train.saes=[{tap:layer_7,latents:32,k:2}]"], "tap=layer_7 is not in the run .* layer_6, layer_30_norm"),
        (["train.saes=[{tap:layer_6,latents:32,k:2,width:64}]"], "width=64 is not that of layer_6, .* use width=16"),
        (
            ["train.steps=100", "train.epochs=1"],
            "needs 1,600 rows, .* 60 rows are fewer; lower it to 3, or raise .* 27",
        ),
        (["train.warmup_steps=10", "train.decay_steps=5"], "do not fit into 14 steps"),
        (["train.batch_rows=18"], "train.batch_rows=18 is not divisible by the 4 devices .* use 20"),
        (["train.run=nowhere"], "nowhere holds no run: run.json is missing"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    stage: Stage, overrides: list[str], said: str, tmp_path: Path
) -> None:
    with pytest.raises(JobError, match=said) as refused:
        stage.inputs(tmp_path, (4, 1), *overrides)
    assert "\n" not in str(refused.value)
