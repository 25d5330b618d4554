"""inspect shows what is in the run, with text that is the prompt's; diff finds exactly what differs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sample_runs import finished_run, folders, rewrite
from text_runs import OUTLIER_DIMENSION, text_run

from pod_job.commands import diff, inspect
from pod_job.commands.verify import main as verify
from pod_job.finishing.merge import merge
from pod_job.prompts.tasks import read_tasks
from pod_job.reading.dataset import ActivationDataset
from pod_job.run_folder import layout
from pod_job.storage.folder import Folder
from pod_job.storage.open import open_folder


def facts(capsys: pytest.CaptureFixture[str], *argv: str) -> Any:
    capsys.readouterr()
    assert inspect.main([*argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("kind", ["local", "bucket"])
def test_a_run_and_its_parts_are_shown(
    kind: str, tmp_path: Path, require: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    with folders(kind, tmp_path, require) as new_folder:
        folder = new_folder()
        batches = finished_run(folder, [5, 0, 7])
        shown = facts(capsys, folder.url)
        assert (shown["rows"], shown["state"], shown["verified"]) == (12, "complete", "not verified yet")
        assert [line["tap"] for line in shown["taps"]] == ["layer_6", "layer_30_norm"]
        assert facts(capsys, folder.url, "--batch", "3")["first row"] == 5
        row = facts(capsys, folder.url, "--row", "6")
        assert (row["batch"], row["token_id"]) == (3, int(batches[2].rows.token_id[1]))
        norm = np.linalg.norm(batches[2].taps["layer_6"][1].astype(np.float32))
        assert row["taps"][0]["norm"] == pytest.approx(float(norm))
        assert "no more text than this" in row["note"]  # made by no job: no tokenizer is known
        verify([folder.url])
        merge(folder)  # which changes nothing but its time
        assert facts(capsys, folder.url)["verified"].startswith("verified 20")
        report = json.loads(folder.read(layout.VERIFIED))
        folder.replace(layout.VERIFIED, json.dumps(report | {"content": "AAAAAA=="}).encode())
        assert facts(capsys, folder.url)["verified"] == "changed since it was verified"


@pytest.mark.parametrize("positions", ["all", "last"])
def test_the_text_around_a_row_is_the_prompts(
    positions: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = text_run(open_folder(tmp_path / "run"), tmp_path / "model", positions)
    dataset = ActivationDataset(config.storage.run_dir, "layer_1")
    consent = [] if positions == "all" else ["--follow-recorded"]  # all tokens, and the tokenizer, are in the run
    prompts = {(s.task_id, s.sample_idx): s.prompt for s in read_tasks(config.tasks).samples}
    for number in (0, 1, len(dataset) // 2, len(dataset) - 1):
        row = facts(capsys, config.storage.run_dir, "--row", str(number), *consent)
        prompt, at = prompts[row["task_id"], row["sample_idx"]], row["position"]  # one token a byte
        assert (row["before"], row["token"], row["after"]) == (
            prompt[max(0, at - 24) : at],
            prompt[at],
            prompt[at + 1 : at + 25],
        )
        assert "note" not in row
        assert dataset.tokens(number) == row["token"]
    assert "".join(dataset.tokens(slice(0, 3))) == "".join(dataset.tokens(at) for at in range(3))
    tap = facts(capsys, config.storage.run_dir, "--tap", "layer_2")
    assert tap["largest dimensions"][0]["dimension"] == OUTLIER_DIMENSION


def test_an_unfinished_run_says_so_and_is_left_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = open_folder(tmp_path / "run")
    text_run(folder, tmp_path / "model", skip=[2])
    before = folder.names("")
    assert facts(capsys, folder.url)["state"] == "UNFINISHED, 1 batches missing"
    assert facts(capsys, folder.url, "--batch", "3")["batch"] == 3
    assert inspect.main([folder.url]) == 0
    assert folder.names("") == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--batch", "9"], "--batch 9: the run has batches 1 to 3"),
        (["--row", "12"], "--row 12: the run has rows 0 to 11"),
        (["--tap", "layer_7"], "Layer not found in activations: layer=layer_7"),
    ],
)
def test_what_is_not_there_is_named(
    tmp_path: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    finished_run(open_folder(tmp_path), [5, 0, 7])
    assert inspect.main([str(tmp_path), *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"error: {said}")


@pytest.mark.parametrize(
    ("old", "new"),
    [('"dtype": "bfloat16"', '"dtype": "float32"'), ('"samples": 16', '"samples": 17'), ("tiny", "other")],
)
@pytest.mark.parametrize("file", [layout.RUN, layout.METADATA])
def test_metadata_that_contradicts_the_run_is_said(
    tmp_path: Path, file: str, old: str, new: str, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [open_folder(tmp_path / name) for name in "ab"]
    for run in runs:
        finished_run(run, [5, 7])
    claimed = json.loads((tmp_path / "a" / layout.RUN).read_text())
    text = json.dumps(claimed, indent=1)
    assert old in text
    if file == layout.RUN:
        (tmp_path / "a" / layout.RUN).write_text(text.replace(old, new))
    else:
        provenance = json.loads(text.replace(old, new))["identity"]
        rewrite(tmp_path / "a" / layout.METADATA, lambda described: described.update(provenance=provenance))
    a, b = (run.url for run in runs)
    for command, arguments in ((inspect, [a]), (diff, [a, b]), (diff, [b, a])):
        assert command.main(arguments) == 2
        assert f"{layout.METADATA}: is not of the run in {layout.RUN}: " in capsys.readouterr().err


def differing(capsys: pytest.CaptureFixture[str], a: Folder, b: Folder, status: int) -> list[tuple]:
    capsys.readouterr()
    assert diff.main([a.url, b.url, "--json"]) == status
    return [(each["part"], each["key"], each["a"], each["b"]) for each in json.loads(capsys.readouterr().out)]


def test_diff_names_every_difference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b, c = (open_folder(tmp_path / name) for name in "abc")
    finished_run(a, [5, 7])
    finished_run(b, [5, 7])
    finished_run(c, [5, 7, 1], ("layer_6",))
    assert differing(capsys, a, b, 0) == []
    assert differing(capsys, a, c, 1) == [
        ("identity", "taps", ["layer_6", "layer_30_norm"], ["layer_6"]),
        ("identity", "tasks.samples", 16, 24),
        ("content", "rows", 12, 13),
        ("content", "total_batches", 2, 3),
        ("content", "total_samples", 16, 24),
        ("content", "widths.layer_30_norm", 16, None),
    ]
    run = tmp_path / "b" / "run.json"
    run.write_text(run.read_text().replace('"pod_job_version": "', '"pod_job_version": "9'))
    assert [key for _, key, *_ in differing(capsys, a, b, 0)] == ["pod_job_version"]
    assert diff.main([a.url, str(tmp_path / "none")]) == 2
