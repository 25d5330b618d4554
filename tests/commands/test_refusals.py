"""Words that a verb on a run folder cannot use are refused in one line with the fix; nothing is written before."""

import importlib
from pathlib import Path

import pytest
from sample_runs import finished_run

from pod_job.errors import JobError
from pod_job.reading.dataset import ActivationDataset
from pod_job.storage.open import open_folder
from tools.corruption.trained_run import write_trained
from tools.random_run import RunShape, make_run


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    finished_run(open_folder(tmp_path / "run"), [5, 3])
    (tmp_path / "file").write_text("text")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("verb", "words", "says"),
    [
        ("verify", "run other", "other is not key=value; give one RUN_DIR"),
        ("verify", "run tasks.path=x", "tasks.path=x is read with --recompute only"),
        ("verify", "run --recompute -3", "--recompute=-3 is too small; use 0 or more"),
        ("verify", "run --recompute 1 --seed -1", "--seed=-1 is too small"),
        ("verify", "file", "storage.run_dir=file: is a file; name a folder"),
        ("inspect", "run other", "other is not key=value"),
        ("verify", "run --follow-recorded", "--follow-recorded is read with --recompute only"),
        ("inspect", "run --follow-recorded", "--follow-recorded is read with --row only"),
        ("inspect", "run model.path=x", "model.path=x is read with --row only"),
        ("report", "run other", "other is not key=value"),
        ("report", "run model.pth=x", "model.pth is not a field of the configuration; did you mean model.path?"),
        ("inspect", "run --row 1 +task.path=x", "task.path is not a field of the configuration; did you mean tasks"),
        ("shuffle", "run out --host 2 --hosts 2", "--host=2: not one of the 2 processes; use 0 to 1"),
        ("shuffle", "run out --hosts 0", "--hosts=0 is too small; use 1 or more"),
        ("shuffle", "run out --seed -1", "--seed=-1 is too small; use 0 or more"),
        ("shuffle", "run file", "is a file; name a folder"),
        ("export", "run file", "is a file; name a folder"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    verb: str, words: str, says: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in runs.rglob("*") if path.is_file()}
    assert importlib.import_module(f"pod_job.commands.{verb}").main(words.split()) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith(f"error: {says}") or says in shown.err
    assert shown.err.count("\n") == 1
    assert {path: path.read_bytes() for path in runs.rglob("*") if path.is_file()} == before


def test_a_missing_run_folder_is_named_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        importlib.import_module("pod_job.commands.verify").main([])
    assert "required: RUN_DIR; see pod-job verify --help" in capsys.readouterr().err


def test_one_flag_may_be_given_as_a_word_and_kinds_of_arrays_are_named(runs: Path) -> None:
    assert len(ActivationDataset(runs / "run", layer=6, exclude="nonfinite")) == 8
    dataset = ActivationDataset(runs / "run", layer=6)
    dataset.as_ = "tf"  # type: ignore[assignment]
    with pytest.raises(JobError, match=r"as_=tf: not a kind of arrays; use numpy, torch, jax"):
        dataset[0]


@pytest.mark.parametrize(
    "verb", ["merge", "merge --compact", "verify", "shuffle", "export_sae_lens", "inspect --row 1"]
)
def test_the_run_of_a_training_is_refused_where_vectors_are_wanted(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(open_folder(tmp_path / "vectors"), RunShape(batches=1, rows=8, samples=2, width=8, taps=("layer_0",)))
    write_trained(open_folder(tmp_path / "vectors"), open_folder(tmp_path / "saes"))
    name, *words = verb.split()
    words += {"shuffle": "saes out", "export_sae_lens": "saes out --layer 0 --context-size 4 --hook-name x"}.get(
        name, "saes"
    ).split()
    before = sorted(tmp_path.rglob("*"))
    assert importlib.import_module(f"pod_job.commands.{name}").main(words) == 2
    shown = capsys.readouterr().err
    assert "saes holds SAEs and no vectors" in shown
    assert shown.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before
