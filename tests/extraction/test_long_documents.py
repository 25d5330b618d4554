"""Runs of long documents: windows and means are Hugging Face's, packed and on meshes; what is missing is resumed."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from begin_token import add_begin_token
from local_run import run_here

from pod_job.checking.consent import Consent
from pod_job.checking.recompute import recompute
from pod_job.checking.verify import verify
from pod_job.errors import JobError
from pod_job.prompts.tokenizer import load_tokenizer
from pod_job.reading.dataset import ActivationDataset
from pod_job.report.run_facts import dropped
from pod_job.run_folder import layout
from tools.tiny_model import write_tiny_model

LENGTHS = (70, 3, 25, 41, 90)
S = 32
MESHES: dict[str, dict[str, Any]] = {
    "one device": {},
    "fsdp": {"mesh.data": 2, "mesh.model": 2, "sharding": "fsdp"},
    "tensor": {"mesh.model": 2, "sharding": "tensor"},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_tiny_model(tmp_path_factory.mktemp("model"), layers=2)
    add_begin_token(folder)
    return folder


@pytest.fixture(scope="module")
def tasks(model: Path) -> Path:
    rng = np.random.default_rng(0)
    texts = ["".join(map(chr, rng.integers(97, 123, length))) for length in LENGTHS]
    file = model / "tasks.jsonl"
    file.write_text("".join(json.dumps({"task_id": f"t{i}", "text": text}) + "\n" for i, text in enumerate(texts)))
    return file


@pytest.fixture(scope="module")
def documents(model: Path, tasks: Path) -> dict[str, list[int]]:
    """Returns each document's token ids, as tokenized whole."""
    tokenizer = load_tokenizer(model)
    records = map(json.loads, tasks.read_text().splitlines())
    return {record["task_id"]: tokenizer(record["text"])["input_ids"] for record in records}


@pytest.fixture(scope="module")
def truth(model: Path, torch_there: None) -> Callable[[tuple[int, ...]], np.ndarray]:
    """Returns a function from token ids to `layer_1` of Hugging Face's model."""
    from pod_job.checking.hf_reference import load_reference, run_reference

    reference = load_reference(model)
    return cache(lambda ids: run_reference(reference, np.array([ids]), ["layer_1"])["layer_1"][0])


def error(vector: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(vector - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize(("mesh", "overlap"), [("one device", 0), ("fsdp", 5), ("tensor", 0)])
def test_a_run_of_windows_is_hugging_faces_on_each_of_them(
    model: Path, tasks: Path, tmp_path: Path, documents: dict, truth: Callable, mesh: str, overlap: int
) -> None:
    changes = {"extract.too_long": "split", "extract.overlap": overlap, "extract.seq_len": S} | MESHES[mesh]
    run_here(model, tmp_path, tasks, changes)
    data = ActivationDataset(tmp_path, 1)
    rows = data.rows(slice(None))
    seen = set()
    for i, vector in enumerate(data[:]):
        task, window, position = (rows[name][i] for name in ("task_id", "window", "position"))
        ids, start = documents[task], S + (window - 1) * (S - 1 - overlap)
        read = ids[:S] if not window else [ids[0], *ids[start - overlap : start + S - 1 - overlap]]
        place = int(rows["window_position"][i])
        assert ids[position] == read[place] == rows["token_id"][i]
        assert rows["special"][i] == (place == 0)
        assert error(vector, truth(tuple(read))[place]) < 1e-5
        seen.add((task, 0 if place else window, position))
    assert {(task, 0, position) for task, ids in documents.items() for position in range(len(ids))} <= seen
    assert len(data) == sum(map(len, documents.values())) + sum(rows["window"][rows["window_position"] == 0] > 0)
    assert verify(tmp_path).sound


def test_a_run_of_windows_is_resumed_and_recomputed(
    model: Path, tasks: Path, tmp_path: Path, torch_there: None
) -> None:
    changes = {"extract.too_long": "split", "extract.overlap": 5, "extract.seq_len": S}
    run_here(model, tmp_path, tasks, changes)
    before = {path: path.read_bytes() for path in tmp_path.glob("activations/*_batch_*")}
    rows = ActivationDataset(tmp_path, 1).rows(slice(None))
    for name in (layout.METADATA, layout.commit_file(2), layout.activations_file("layer_1", 2), layout.rows_file(3)):
        (tmp_path / name).unlink()
    (tmp_path / layout.commit_file(3)).unlink()
    run_here(model, tmp_path, tasks, changes)
    again = ActivationDataset(tmp_path, 1).rows(slice(None))
    assert rows.keys() == again.keys()
    for name, column in rows.items():
        np.testing.assert_array_equal(again[name], column)
    vectors = [path for path in before if path.suffix == ".safetensors"]
    assert [path.read_bytes() for path in vectors] == [before[path] for path in vectors]
    deviation = recompute(tmp_path, 30, consent=Consent(follow_recorded=True))["layer_1"]
    assert not deviation.too_far
    assert deviation.largest < 1e-5
    with pytest.raises(JobError, match="overlap is 5 there, 4 here"):
        run_here(model, tmp_path, tasks, changes | {"extract.overlap": 4})


def test_a_mean_is_that_of_the_rows_that_would_be_stored(
    model: Path, tasks: Path, tmp_path: Path, documents: dict, truth: Callable
) -> None:
    changes = {
        "extract.too_long": "tail",
        "extract.positions": "mean",
        "extract.exclude": "[special]",
        "extract.seq_len": S,
    }
    run_here(model, tmp_path, tasks, changes | {"extract.rows_per_device": 2} | MESHES["fsdp"])
    data = ActivationDataset(tmp_path, 1, positions="mean")
    rows = data.rows(slice(None))
    assert rows["task_id"].tolist() == list(documents)
    assert set(rows["position"]) == set(rows["token_id"]) == {-1}
    for task, vector in zip(documents, data[:], strict=True):
        ids = documents[task]
        read = ids if len(ids) <= S else [ids[0], *ids[1 - S :]]
        assert error(vector, truth(tuple(read))[1:].mean(axis=0)) < 1e-5
    deviation = recompute(tmp_path, 5, consent=Consent(follow_recorded=True))["layer_1"]
    assert deviation.rows == len(LENGTHS)
    assert deviation.largest < 1e-5
    counts = data.metadata.prompts
    assert counts is not None
    assert counts.tokens == sum(map(len, documents.values()))
    assert counts.dropped_tokens == sum(max(0, len(ids) - S) for ids in documents.values())
    share = counts.dropped_tokens / counts.tokens
    assert dropped(data.metadata)["dropped tokens"] == f"{counts.dropped_tokens} of {counts.tokens} ({share:.1%})"


def test_chosen_rows_are_those_of_all_in_another_packing(model: Path, tasks: Path, tmp_path: Path) -> None:
    few = {"extract.positions": "sample=0.2", "extract.seq_len": 96, "extract.exclude": "[special]"}
    run_here(model, tmp_path / "few", tasks, few | {"extract.rows_per_device": 3, "extract.prompts_per_row": 2})
    run_here(model, tmp_path / "all", tasks, {"extract.seq_len": 96})
    chosen, everything = (
        ActivationDataset(tmp_path / "few", 1, positions="sample=0.2"),
        ActivationDataset(tmp_path / "all", 1),
    )
    rows, all_rows = chosen.rows(slice(None)), everything.rows(slice(None))
    places = {key: i for i, key in enumerate(zip(all_rows["task_id"], all_rows["position"].tolist(), strict=True))}
    numbers = [places[key] for key in zip(rows["task_id"], rows["position"].tolist(), strict=True)]
    assert numbers == sorted(numbers)
    assert 15 < len(chosen) < 90
    np.testing.assert_allclose(chosen[:], everything[numbers], rtol=1e-5, atol=1e-5)
    assert "window" not in rows


def test_a_new_run_does_not_drop_begin_tokens(model: Path, tasks: Path, tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"extract\.too_long=cut drops the begin token .* use tail, head or split"):
        run_here(model, tmp_path, tasks, {"extract.too_long": "cut", "extract.seq_len": S})


def test_a_run_that_was_begun_with_cut_goes_on_with_it(
    model: Path, tasks: Path, tmp_path: Path, documents: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"extract.too_long": "cut", "extract.seq_len": S}
    with monkeypatch.context() as before:
        before.setattr("pod_job.planning.inputs.check_too_long", lambda *_: None)
        run_here(model, tmp_path, tasks, changes)
    (tmp_path / layout.METADATA).unlink()
    (tmp_path / layout.commit_file(2)).unlink()
    run_here(model, tmp_path, tasks, changes)
    rows = ActivationDataset(tmp_path, 1).rows(slice(None))
    for task, ids in documents.items():
        assert rows["token_id"][rows["task_id"] == task].tolist() == ids[-S:]
        assert rows["position"][rows["task_id"] == task].tolist() == list(range(len(ids[-S:])))
