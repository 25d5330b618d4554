"""Every command finds the same in a run after it was compacted; the run is one that the job made."""

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from job_processes import finish, start

from pod_job.checking import reference
from pod_job.commands import diff, inspect
from pod_job.commands.report import main as report
from pod_job.commands.verify import main as verify_main
from pod_job.finishing.compact import compact
from pod_job.finishing.shuffle import shuffle
from pod_job.interop.pickle_export import export_pickles
from pod_job.reading.dataset import ActivationDataset
from pod_job.run_folder import layout
from pod_job.storage.open import open_folder
from tools.tiny_model import write_tiny_model

pytestmark = pytest.mark.pod
TAPS = ["layer_1", "layer_2.q"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run of eight prompts in three batches, and the same compacted."""
    folder = tmp_path_factory.mktemp("runs")
    settings = {"tasks": "arc_sample", "tasks.limit": 8, "extract": "all_tokens", "extract.seq_len": 512}
    settings |= {"extract.taps": f"[{','.join(TAPS)}]", "extract.save_every_n_samples": 3, "parity.samples": 0}
    settings |= {"model.path": write_tiny_model(folder / "model"), "model.dtype": "float32"}
    settings |= {"storage.run_dir": folder / "plain"}
    finish(start([f"{key}={value}" for key, value in settings.items()], hosts=1, devices=1))
    shutil.copytree(folder / "plain", folder / "compacted")
    compact(open_folder(folder / "compacted"))
    assert len(list((folder / "compacted" / layout.ACTIVATIONS).iterdir())) == len(TAPS) + 2
    return folder / "plain", folder / "compacted"


@pytest.fixture
def answers(capsys: pytest.CaptureFixture[str]) -> Callable[..., list[Any]]:
    """Returns a function that runs a command on both runs and returns its JSON, with one name for both."""

    def ask(main: Callable[[list[str]], int], runs: tuple[Path, Path], *arguments: str) -> list[Any]:
        results = []
        for run in runs:
            capsys.readouterr()
            assert main([str(run), *arguments, "--json"]) == 0
            results.append(json.loads(capsys.readouterr().out.replace(str(run), "RUN")))
        return results

    return ask


def test_it_verifies_and_its_rows_can_be_computed_anew(
    runs: tuple[Path, Path], answers: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "torch_installed", lambda: False)  # test_recompute.py has both references
    plain, compacted = answers(verify_main, runs, "--recompute", "6", "--follow-recorded")
    assert compacted["sound"]
    assert list(compacted["recomputed"]) == TAPS
    assert compacted["recomputed"] == plain["recomputed"]
    assert compacted["recomputed"]["layer_1"]["rows"] == 6
    of_files = {"bytes": 0, "content": ""}  # sizes and checksums of the files themselves
    assert compacted | of_files == plain | of_files
    assert compacted["bytes"] > plain["bytes"]  # there are headers before the headers


@pytest.mark.parametrize("of", [[], ["--batch", "3"], ["--row", "1000"], ["--tap", "layer_2.q"]], ids=str)
def test_inspect_shows_the_same(runs: tuple[Path, Path], answers: Callable, of: list[str]) -> None:
    plain, compacted = answers(inspect.main, runs, *of)
    if of[:1] == ["--batch"]:
        before, after = ([file.pop("file") for file in answer["files"]] for answer in (plain, compacted))
        assert [layout.is_joined(name) for name in (*before, *after)] == [False] * 3 + [True] * 3
    for answer in (plain, compacted):
        answer.pop("verified", None)  # when, and whether at all, depends on the tests before
    assert compacted == plain


def test_the_report_says_the_same(runs: tuple[Path, Path], answers: Callable, require: Callable) -> None:
    require(importlib.util.find_spec("matplotlib") is not None, "matplotlib")
    plain, compacted = answers(report, runs)
    assert compacted["rows"] > 1000
    for answer in (plain, compacted):
        for name in ("verified", "findings"):  # whether it was verified depends on the tests before
            answer.pop(name)
    assert compacted == plain


def test_diff_finds_no_difference(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert diff.main([*map(str, runs), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_the_dataset_is_the_same(runs: tuple[Path, Path]) -> None:
    for tap in TAPS:
        plain, compacted = (ActivationDataset(run, tap, exclude=["special"]) for run in runs)
        some = np.random.default_rng(0).permutation(len(plain))[:300]
        assert len(plain) == len(compacted) > 1000
        np.testing.assert_array_equal(compacted[:], plain[:])
        np.testing.assert_array_equal(compacted[some], plain[some])
        np.testing.assert_array_equal(compacted.batch_of(some), plain.batch_of(some))
        for name, column in plain.rows(slice(None)).items():
            np.testing.assert_array_equal(compacted.rows(slice(None))[name], column)
        epochs = (
            data.batches(64, seed=5, buffer_rows=256, block_rows=32, with_index=True) for data in (plain, compacted)
        )
        for (a, numbers_a), (b, numbers_b) in zip(*epochs, strict=True):
            np.testing.assert_array_equal(b, a)
            np.testing.assert_array_equal(numbers_b, numbers_a)
        assert compacted.statistics == plain.statistics


def test_what_is_made_of_it_is_the_same(runs: tuple[Path, Path], tmp_path: Path) -> None:
    for run in runs:
        export_pickles(run, tmp_path / f"pickles of {run.name}", layers=[1])
        shuffle(run, tmp_path / f"shuffled {run.name}", seed=4, part_bytes=20_000)
    for made in ("pickles of", "shuffled"):
        plain, compacted = (tmp_path / f"{made} {run.name}" for run in runs)
        names = sorted(
            path.relative_to(plain) for path in plain.rglob("*.*") if path.suffix in (".pkl", ".safetensors")
        )
        assert len(names) >= 3
        for name in names:
            assert (compacted / name).read_bytes() == (plain / name).read_bytes()
