"""A run whose batches are all committed is complete without a host; one that lacks any is not."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from sample_runs import PER_BATCH, batch, identity

from launch import merging
from launch.merging import completed
from pod_job.config.generate import Mode
from pod_job.planning.inputs import Inputs
from pod_job.planning.training import JobInputs
from pod_job.run_folder.commit import commit_batch
from pod_job.run_folder.identity import claim
from pod_job.run_folder.layout import METADATA, commit_file
from pod_job.run_folder.metadata import read_any
from pod_job.storage.folder import Folder
from pod_job.storage.open import open_folder

BATCHES = 3


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """A run folder with all batches committed and no metadata."""
    folder = open_folder(tmp_path / "run")
    claim(folder, identity(PER_BATCH * BATCHES))
    for number in range(1, BATCHES + 1):
        commit_batch(folder, batch(number, 4), host=0)
    return folder


def inputs_of(folder: Folder, mode: Mode = Mode.prefill) -> JobInputs:
    inputs = Inputs.__new__(Inputs)
    tasks = SimpleNamespace(format="arc")
    config = SimpleNamespace(mode=mode, tasks=SimpleNamespace())
    for name, value in {"folder": folder, "config": config, "tasks": tasks}.items():
        object.__setattr__(inputs, name, value)
    return inputs


def test_what_is_committed_whole_is_merged(folder: Folder) -> None:
    lines: list[str] = []
    assert completed(inputs_of(folder), lines.append)
    assert lines == ["all 3 batches are committed: merging them from here"]
    assert read_any(folder).complete
    assert completed(inputs_of(folder), lines.append)
    assert len(lines) == 1


@pytest.mark.parametrize("name", [commit_file(2), "run.json"])
def test_what_lacks_anything_is_left_to_hosts(folder: Folder, name: str) -> None:
    folder.remove(name)
    assert not completed(inputs_of(folder), print)
    assert folder.stat(METADATA) is None


def test_training_is_left_to_hosts(folder: Folder) -> None:
    assert not completed(inputs_of(folder, Mode.train), print)
    assert folder.stat(METADATA) is None


def test_a_record_that_cannot_be_read_is_told_and_left_to_hosts(folder: Folder) -> None:
    folder.replace(commit_file(2), b"{")
    lines: list[str] = []
    assert not completed(inputs_of(folder), lines.append)
    assert commit_file(2) in lines[-1]


def test_predictions_come_before_the_metadata(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []

    def write_predictions(folder: Folder, batches: int, config: object) -> None:
        assert folder.stat(METADATA) is None
        written.append(batches)

    monkeypatch.setattr(merging, "write_predictions", write_predictions)
    monkeypatch.setattr(Inputs, "tasks_config", property(lambda inputs: None))
    assert completed(inputs_of(folder, Mode.generate), print)
    assert written == [BATCHES]
