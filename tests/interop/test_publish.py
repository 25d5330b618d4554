"""A run is published whole, with a card made of its records and without private files; and goes on after a stop."""

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from fake_hub import FakeHub
from msgspec.structs import replace
from sae_samples import finish_training, random_sae, sae_shape
from sample_runs import WIDTH, finished_run, identity

from pod_job.commands.publish import main
from pod_job.config.train import SaeGrid, TrainConfig
from pod_job.formats.records import encode
from pod_job.interop.card import dataset_card, sae_card
from pod_job.interop.publish import plan_publication, publish
from pod_job.planning.training_schedule import train_identity
from pod_job.run_folder.identity import claim, read_run
from pod_job.run_folder.layout import EVALUATION, METADATA, SAES_METADATA, sae_prefix
from pod_job.run_folder.metadata import read_any
from pod_job.storage.folder import Folder
from pod_job.storage.open import open_folder
from pod_job.training.evaluation import DENSITY_EDGES, CrossEntropy, EvaluationRecord, SaeEvaluation
from pod_job.training.layouts.read import read_saes
from pod_job.training.layouts.sae_lens import write_sae

PRIVATE = ("launcher/start.json", "pods/a_created.json", "status/host_00.json", "logs/host_00.log", "code/a.tar.gz")
PRIVATE += (
    "run.json~",
    "run.json.orig",
    "training/metrics.json.bak",
    "evaluation/record.json.1",
    "tokenizer/tokenizer.json_",
)
HOSTILE = 'x"); import os; (("\n\n# head\n<img src=x> | `ls` [a](b) ``` \u202e\x1b[2J'


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with FakeHub().serving(monkeypatch) as serving:
        yield serving


def run_of(kind: str, folder: Folder) -> None:
    """Makes a finished run with files that must stay."""
    if kind == "dataset":
        finished_run(folder, [5, 7])
    else:
        claim(folder, identity(10))
        write_sae(folder, sae_prefix("one"), random_sae(sae_shape("topk")))
        finish_training(folder)
    for name in PRIVATE:
        folder.replace(name, b"secret")


def published(hub: FakeHub, repo: str) -> dict[str, bytes]:
    there = hub.repos[repo]
    return {name: blob.content for name, blob in there.files[there.refs["main"]].items()}


@pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")  # within huggingface_hub
@pytest.mark.parametrize(("kind", "repo"), [("dataset", "datasets/me/run"), ("saes", "models/me/run")])
def test_a_run_is_published_without_what_is_nobody_elses(
    kind: str, repo: str, tmp_path: Path, hub: FakeHub, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = open_folder(tmp_path / "run")
    run_of(kind, folder)
    assert main([folder.url, "me/run", "--license", "apache-2.0", "--dry-run"]) == 0
    assert repo not in hub.repos
    assert main([folder.url, "me/run", "--license", "apache-2.0"]) == 0, capsys.readouterr().err
    files = published(hub, repo)
    assert b"secret" not in files.values()
    assert {name: folder.read(name) for name in files if name != "README.md"} == {
        name: content for name, content in files.items() if name != "README.md"
    }
    card = files["README.md"].decode()
    assert yaml.safe_load(card.split("---")[1])["license"] == "apache-2.0"
    if kind == "dataset":
        assert METADATA in files
        assert "| rows of each tap | 12 |" in card
    else:
        assert "| one | layer_0 | topk | 40 | 5 |" in card
        for name, content in files.items():
            (tmp_path / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "copy" / name).write_bytes(content)
        assert list(read_saes(tmp_path / "copy")) == ["one"]


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_what_is_no_file_of_the_run_is_refused_before_anything_is_sent(
    kind: str, tmp_path: Path, hub: FakeHub, capsys: pytest.CaptureFixture[str]
) -> None:
    run_of("saes", open_folder(tmp_path / "run"))
    place = tmp_path / "run" / sae_prefix("one") / "notes.txt"
    os.mkfifo(place) if kind == "pipe" else place.symlink_to("/etc/hostname")
    for words in (["--dry-run"], []):
        assert main([str(tmp_path / "run"), "me/run", *words]) == 2
        assert re.search("leads out of|is not a regular file", capsys.readouterr().err)
    assert not hub.requests


def test_texts_of_a_run_are_no_code_and_no_markup_on_its_card(tmp_path: Path) -> None:
    """A card has code to copy, which whoever reads it runs; and the hub shows it as a page."""
    folder = open_folder(tmp_path / "run")
    finished_run(folder, [5])
    run, metadata = read_run(folder), read_any(folder)
    model = replace(run.identity.model, name=HOSTILE)
    run = replace(run, identity=replace(run.identity, model=model), pod_job_version=HOSTILE, created=HOSTILE)
    run = replace(run, config={"tasks": {"path": HOSTILE}})
    named = replace(metadata, taps=[HOSTILE], widths={HOSTILE: 3}, model_name=HOSTILE, pod_job_version=HOSTILE)
    name = HOSTILE.translate({ord(mark): None for mark in "/\n\x1b"})  # as a folder may be called
    write_sae(folder, sae_prefix(name), random_sae(sae_shape("topk")))
    measured = SaeEvaluation(
        **{"name": name, "rows": 1, "latents": 1, "densities": [0] * len(DENSITY_EDGES)},
        **dict.fromkeys(("l0", "mse", "explained_variance", "cosine", "dead", "recovered"), 0.5),
        cross_entropy=CrossEntropy(1, 1.0, 1.0, 1.0),
    )
    record = EvaluationRecord(
        **{"format": 1, "skipped": 0, "seq_len": 8, "saes": [measured], "versions": {}},
        **dict.fromkeys(("model", "documents", "dtype", "measured"), HOSTILE),
    )
    folder.replace(EVALUATION, encode(record))
    for card in (dataset_card("me/run", run, named, HOSTILE), sae_card("me/run", folder, [name], run, HOSTILE)):
        _, front, body = card.split("---\n", 2)
        assert yaml.safe_load(front)["license"] == HOSTILE
        assert not re.search(r"[\x00-\x09\x0b-\x1f\u202e]", body)
        text, *blocks = re.split(r"^```", body, flags=re.MULTILINE)
        code = [block.removeprefix("python\n") for block in blocks if block.startswith("python\n")]
        assert [[type(line).__name__ for line in ast.parse(block).body] for block in code] in (
            [["ImportFrom", "ImportFrom", "Assign", "Assign"]],
            [["ImportFrom", "Assign"]],
        )
        outside = text + "".join(block for block in blocks if not block.startswith(("python\n", "json\n")))
        assert "<img" not in outside
        assert "\n# head" not in outside
        assert "[a](b)" not in outside.replace("\\[", "")


@pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")  # within huggingface_hub
def test_an_interrupted_publication_sends_the_rest(
    tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pod_job.interop.publish.COMMIT_FILES", 3)
    folder = open_folder(tmp_path / "run")
    run_of("dataset", folder)
    commits = iter([0, 403])
    hub.refuse = lambda method, path: next(commits, 0) if "/commit/" in path else 0
    assert main([folder.url, "me/run"]) == 2
    error = capsys.readouterr().err
    assert "me/run cannot be written" in error
    assert [line for line in error.splitlines() if "error" in line] == [error.splitlines()[-1]]
    sent = [line for line in hub.requests if line.startswith("PUT")]
    assert sent
    hub.refuse = lambda method, path: 0
    publish(plan_publication(folder.url, "me/run"))
    again = [line for line in hub.requests if line.startswith("PUT")][len(sent) :]
    assert not set(again) & set(sent)
    assert METADATA in published(hub, "datasets/me/run")


@pytest.mark.parametrize("written", [0, 1])
def test_saes_of_a_training_that_has_not_ended_are_refused(
    written: int, tmp_path: Path, hub: FakeHub, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = open_folder(tmp_path / "run")
    schedule = train_identity(TrainConfig(saes=[SaeGrid(tap=6, latents=40, k=5)]), {"layer_6": WIDTH}, 100)
    claim(folder, replace(identity(10), train=schedule))
    for number in range(written):
        write_sae(folder, sae_prefix(f"sae_{number}"), random_sae(sae_shape("topk")))
    assert main([folder.url, "me/run"]) == 2
    assert f"{SAES_METADATA}: missing; training has not ended" in capsys.readouterr().err
    assert not hub.repos


def test_an_unfinished_run_or_a_bad_name_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = open_folder(tmp_path / "run")
    claim(folder, identity(10))
    assert main([folder.url, "me/run"]) == 2
    assert "metadata.json" in capsys.readouterr().err
    for name in ("run", "a/b/c", "../x"):
        assert main([folder.url, name]) == 2
        assert "OWNER/NAME" in capsys.readouterr().err
