"""Whoever does what a message about a damaged run says has a sound run with the same rows; nothing is lost."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from job_processes import finish, overrides, start
from run_content import content
from sample_runs import finished_run

from pod_job.checking.verify import verify
from pod_job.commands import diff, export, inspect, merge
from pod_job.commands import verify as verify_command
from pod_job.errors import JobError
from pod_job.finishing.shuffle import shuffle
from pod_job.interop.pickle_export import export_pickles
from pod_job.interop.pickle_import import import_pickles
from pod_job.reading.dataset import ActivationDataset
from pod_job.run_folder import layout
from pod_job.run_folder.layout import REPAIR
from pod_job.storage.open import open_folder
from tools.tiny_model import write_tiny_model

MAKE: dict[str, Callable[[Path], object]] = {
    "import": lambda top: import_pickles(top / "pickles", top / "run"),
    "shuffle": lambda top: shuffle(top / "source", top / "run", part_bytes=3000),
}
DAMAGES: dict[str, Callable[[Path], object]] = {
    "flipped": lambda path: path.write_bytes(path.read_bytes()[:-9] + b"\xee" + path.read_bytes()[-8:]),
    "emptied": lambda path: path.write_bytes(b""),
    "missing": Path.unlink,
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}
FILES = [layout.activations_file("layer_6", 2), layout.rows_file(2)]
RECORDS = [layout.commit_file(2), layout.RUN]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each way to make a run, with what it is made of."""
    top = tmp_path_factory.mktemp("made")
    for how, make in MAKE.items():
        finished_run(open_folder(top / how / "source"), [20, 30, 5])
        export_pickles(top / how / "source", top / how / "pickles")
        make(top / how)
    return top


def remove(run: Path, name: str) -> None:
    path = run / name
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def follow(run: Path, damaged: str, message: str) -> None:
    """Removes what the message says, the damaged file itself where it says `without it`."""
    assert REPAIR in message, message
    if without := re.search(r"without it(?:, (\S+) and (\S+))?$", message):
        for name in (damaged, *filter(None, without.groups())):
            remove(run, name)


def problem_of(run: Path, name: str) -> str:
    """Returns what verify says of the file."""
    try:
        return next(problem for problem in verify(run).problems if name in problem)
    except JobError as error:
        return str(error)


@pytest.mark.parametrize("how", MAKE)
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", [*FILES, *RECORDS])
def test_a_damaged_file_is_made_again(name: str, damage: str, how: str, made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / how, tmp_path / "top")
    run = tmp_path / "top" / "run"
    before, identity = content(open_folder(run)), json.loads((run / layout.RUN).read_text())["identity"]
    DAMAGES[damage](run / name)
    follow(run, name, problem_of(run, name))
    remove(run, name) if damage == "a folder" else None  # which importing again would say
    MAKE[how](tmp_path / "top")
    assert verify(run).problems == []
    assert verify(run).sound
    assert content(open_folder(run)) == before
    assert json.loads((run / layout.RUN).read_text())["identity"] == identity


def test_a_merge_never_writes_less_than_a_sound_metadata_lists(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(made / "shuffle" / "source", run)
    metadata = (run / layout.METADATA).read_bytes()
    for number in (1, 3):
        (run / layout.commit_file(number)).unlink()
    said = "lists batches 1, 3, of which there is no commit record; for commits/batch_000001.json, commits/batch_000003"
    for words in ([], ["--compact"]):
        assert merge.main([str(run), *words]) == 2
        assert said in capsys.readouterr().err
        assert (run / layout.METADATA).read_bytes() == metadata
    assert verify_command.main([str(run)]) == 1
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("joined", [False, True])
def test_a_lost_record_of_joined_files_and_a_foreign_batch_are_refused(
    joined: bool, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    shutil.copytree(made / "shuffle" / "source", run)
    if joined:
        assert merge.main([str(run), "--compact"]) == 0
        (run / layout.COMPACTION).unlink()
        said = f"lists files that a compaction joined, of which there is no {layout.COMPACTION}"
    else:
        finished_run(open_folder(other), [20, 31, 5])
        for name in (*FILES, layout.activations_file("layer_30_norm", 2), layout.commit_file(2)):
            shutil.copy(other / name, run / name)
        said = "lists other content of batch 2 than commits/batch_000002.json"
    metadata = (run / layout.METADATA).read_bytes()
    assert merge.main([str(run)]) == 2
    assert said in capsys.readouterr().err
    assert (run / layout.METADATA).read_bytes() == metadata
    assert not verify(run).sound


@pytest.mark.parametrize("damage", DAMAGES)
def test_no_command_says_that_a_damaged_run_is_none(
    damage: str, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(made / "import" / "source", run)
    DAMAGES[damage](run / layout.RUN)
    for command, words in (
        (inspect, [str(run)]),
        (verify_command, [str(run)]),
        (merge, [str(run)]),
        (diff, [str(run), str(run)]),
        (export, [str(run), str(tmp_path / "out")]),
    ):
        assert command.main(words) == 2
        error = capsys.readouterr().err
        assert "holds no run" not in error
        assert layout.RUN in error


@pytest.mark.pod
@pytest.mark.parametrize("name", [layout.activations_file("layer_1", 2), layout.commit_file(2), layout.RUN])
def test_the_job_makes_a_damaged_file_again(name: str, tmp_path: Path) -> None:
    job = overrides(write_tiny_model(tmp_path / "model", layers=4), tmp_path / "run")
    finish(start(job, 1, 1))
    before = [ActivationDataset(tmp_path / "run", layer)[:] for layer in (1, 3)]
    columns = ActivationDataset(tmp_path / "run", 1).rows(slice(None))
    DAMAGES["flipped"](tmp_path / "run" / name)
    follow(tmp_path / "run", name, problem_of(tmp_path / "run", name))
    finish(start(job, 1, 1))
    assert verify(tmp_path / "run").sound
    for layer, vectors in zip((1, 3), before, strict=True):
        # The batch is packed by itself now, and float32 rounds otherwise.
        np.testing.assert_allclose(ActivationDataset(tmp_path / "run", layer)[:], vectors, rtol=1e-5, atol=1e-5)
    assert {name: column.tolist() for name, column in columns.items()} == {
        name: column.tolist() for name, column in ActivationDataset(tmp_path / "run", 1).rows(slice(None)).items()
    }
