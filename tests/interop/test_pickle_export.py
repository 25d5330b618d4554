"""Exported pickles are the documented ones, and reading a pickle never runs what somebody put in it."""

import json
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_runs import TAPS, TIME, finished_run, identity, joined

from pod_job.commands.export import main
from pod_job.errors import JobError
from pod_job.interop.pickle_export import export_pickles
from pod_job.interop.pickle_reader import read_pickle
from pod_job.interop.pickle_writer import remove_export
from pod_job.run_folder import layout
from pod_job.run_folder.identity import claim
from pod_job.storage.open import open_folder

# From the section "Loading Activations for SAE Training" of the extraction document, to the letter.
SNIPPET = """
import pickle
import numpy as np

# Load a batch
with open('activations/layer_12_batch_000001.pkl', 'rb') as f:
    data = pickle.load(f)

layer = data['layer']
activations = [item['activation'] for item in data['activations']]
activations_array = np.stack(activations)  # [n_samples, hidden_dim]

print(f"Layer {layer}: {activations_array.shape}")
# Layer 12: (512, 896)

# Use for SAE training
# sae.train(activations_array)
"""


def test_the_documented_snippet_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    batches = finished_run(open_folder(tmp_path / "run"), [8], ("layer_12",))
    export_pickles(tmp_path / "run", tmp_path / "activations")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(SNIPPET, names)
    assert capsys.readouterr().out == "Layer 12: (8, 16)\n"
    assert names["activations_array"].dtype == np.float32
    np.testing.assert_array_equal(names["activations_array"], joined(batches, "layer_12").astype(np.float32))


def test_chosen_layers_are_written_and_others_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finished_run(open_folder(tmp_path / "run"), [3], ("layer_6", "layer_12"))
    assert main([str(tmp_path / "run"), str(tmp_path / "out"), "--layers", "12"]) == 0
    assert capsys.readouterr().out == "layer_12_batch_000001.pkl\n"
    metadata = json.loads((tmp_path / "out/metadata.json").read_text())
    assert (metadata["layers_extracted"], len(metadata["batches"])) == ([12], 1)
    assert main([str(tmp_path / "run"), str(tmp_path / "more"), "--layers", "12", "--save-every-n-samples", "2"]) == 0
    assert capsys.readouterr().out == "layer_12_batch_000001.pkl\nlayer_12_batch_000002.pkl\n"
    assert main([str(tmp_path / "run"), str(tmp_path / "more"), "--save-every-n-samples", "0"]) == 2
    assert "save_every_n_samples=0 is too small; use 1 or more" in capsys.readouterr().err
    assert main([str(tmp_path / "run"), str(tmp_path / "out"), "--layers", "12", "7"]) == 2
    message = capsys.readouterr().err
    assert "Layer not found in activations: layer=7;" in message
    assert "has layer_6, layer_12; for another, run the job with extract.layers=[7]" in message


@pytest.mark.parametrize("per_file", [1, 4, 8, 100])
def test_files_have_the_documented_layout_and_so_many_activations(tmp_path: Path, per_file: int) -> None:
    batches = finished_run(open_folder(tmp_path / "run"), [3, 0, 5, 11])
    reported: list[str] = []
    export_pickles(tmp_path / "run", tmp_path / "out", reported.append, save_every_n_samples=per_file)
    sizes = [min(per_file, 19 - start) for start in range(0, 19, per_file)]
    names = [f"{tap}_batch_{number:06d}.pkl" for number in range(1, len(sizes) + 1) for tap in TAPS]
    assert sorted(reported) == sorted(names)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted([*names, "metadata.json"])
    metadata = json.loads((tmp_path / "out/metadata.json").read_text())
    assert list(metadata) == ["model_name", "layers_extracted", "hidden_dim", "total_samples", "batches"]
    assert metadata["total_samples"] == 19
    assert [(entry["file"], entry["n_samples"]) for entry in metadata["batches"]] == [
        (name, sizes[number // len(TAPS)]) for number, name in enumerate(names)
    ]
    stored = []
    for number, size in enumerate(sizes, 1):
        content = pickle.loads((tmp_path / "out" / f"layer_6_batch_{number:06d}.pkl").read_bytes())
        assert content.keys() == {"layer", "activations"}
        assert (content["layer"], len(content["activations"])) == (6, size)
        stored += content["activations"]
    assert {(*item, type(item["sample_idx"]), item["timestamp"]) for item in stored} == {
        ("task_id", "sample_idx", "activation", "timestamp", int, TIME)
    }
    assert [item["task_id"] for item in stored] == [task for each in batches for task in each.rows.task_id]
    assert [item["sample_idx"] for item in stored] == [int(n) for each in batches for n in each.rows.sample_idx]
    np.testing.assert_array_equal(
        np.stack([item["activation"] for item in stored]), joined(batches, "layer_6").astype(np.float32)
    )


def test_an_export_never_mixes_with_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finished_run(open_folder(tmp_path / "run"), [8, 8])
    finished_run(open_folder(tmp_path / "short"), [8])
    finished_run(open_folder(tmp_path / "other"), [9, 7])
    out = tmp_path / "out"
    export_pickles(tmp_path / "run", out)
    for name in ("metadata.json", "layer_6_batch_000002.pkl"):  # as one that was killed leaves it
        (out / name).unlink()
    before = {path: path.read_bytes() for path in out.iterdir()}
    for run, options in (("other", []), ("short", []), ("run", ["--layers", "6"]), ("run", ["--save-every-n", "3"])):
        words = [str(tmp_path / run), str(out), *(word.replace("every-n", "every-n-samples") for word in options)]
        assert main(words) == 2, words
        assert f"OUT={out}: holds layer_" in capsys.readouterr().err
        assert {path: path.read_bytes() for path in out.iterdir()} == before
    assert main([str(tmp_path / "run"), str(out)]) == 0
    export_pickles(tmp_path / "run", tmp_path / "whole")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()
    }


def test_an_export_is_removed_whole_and_its_description_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finished_run(open_folder(tmp_path / "run"), [8, 8])
    export_pickles(tmp_path / "run", tmp_path / "out")
    (tmp_path / "out" / "notes.pkl").write_bytes(b"of the reader")
    out, removed = open_folder(tmp_path / "out"), list[str]()
    remove = type(out).remove
    monkeypatch.setattr(type(out), "remove", lambda folder, name: (removed.append(name), remove(folder, name))[1])
    remove_export(out)
    assert removed[0] == "metadata.json"
    assert len(removed) > 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes.pkl"]


def test_the_default_is_the_runs_own_number(tmp_path: Path) -> None:
    finished_run(open_folder(tmp_path / "run"), [30, 5])  # 8 samples a batch, and several rows of each
    described = export_pickles(tmp_path / "run", tmp_path / "out", layers=[6])
    assert [entry.n_samples for entry in described.batches] == [8, 8, 8, 8, 3]
    assert described.total_samples == 35


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        *(("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B"), ("gs://bucket/models/qwen", "gs://bucket/models/qwen")),
        ("/home/me/models/qwen", "demo/tiny"),  # a folder of one machine: the name of the run's identity
    ],
)
def test_the_models_name_is_the_one_that_was_given(tmp_path: Path, given: str, shown: str) -> None:
    folder = open_folder(tmp_path / "run")
    claim(folder, identity(8, TAPS), {"model": {"path": given, "dtype": "bfloat16"}, "mode": "prefill"})
    finished_run(folder, [3])
    assert export_pickles(tmp_path / "run", tmp_path / "out").model_name == shown


def test_a_missing_file_of_the_run_is_named(tmp_path: Path) -> None:
    finished_run(open_folder(tmp_path / "run"), [3, 5])
    (tmp_path / "run" / layout.activations_file("layer_6", 2)).unlink()
    with pytest.raises(JobError, match=r"layer_6_batch_000002\.safetensors: missing"):
        export_pickles(tmp_path / "run", tmp_path / "out")


def _content(**item: Any) -> dict[str, Any]:
    whole = {"task_id": "t", "sample_idx": 0, "activation": np.arange(4, dtype=np.float32), "timestamp": TIME}
    return {"layer": 6, "activations": [{**whole, **item}]}


@pytest.mark.parametrize("protocol", range(3, pickle.HIGHEST_PROTOCOL + 1))  # 2 is Python 2's
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f2", "<f8", "<i8"])
def test_the_reader_reads_what_pickle_wrote(tmp_path: Path, protocol: int, dtype: str) -> None:
    vectors = np.arange(12).astype(dtype).reshape(3, 4)
    content = {"layer": 6, "activations": [_content(activation=v)["activations"][0] for v in vectors]}
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(content, protocol))
    stored = read_pickle(tmp_path / "x.pkl")
    assert stored.layer == content["layer"]
    for before, after in zip(content["activations"], stored.activations, strict=True):
        np.testing.assert_array_equal(after.activation, before.pop("activation"))
        assert {"task_id": after.task_id, "sample_idx": after.sample_idx, "timestamp": after.timestamp} == before


class _Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return open, (str(self.path), "w")


def test_nothing_in_a_pickle_is_run(tmp_path: Path) -> None:
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(_content(task_id=_Touch(tmp_path / "touched"))))
    with pytest.raises(JobError, match=r"x\.pkl: not an activation pickle .*it names _?io\.open"):
        read_pickle(tmp_path / "x.pkl")
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([], "Expected `object`, got `array`"),
        ({"layer": 6}, "activations is missing"),
        ({"layer": "6", "activations": []}, "layer: expected `int`, got `str`"),
        ({"layer": 6, "activations": [1]}, r"activations\[0\]: expected `object`, got `int`"),
        (_content(extra=1), r"activations\[0\]: object contains unknown field `extra`"),
        (_content(sample_idx="0"), r"activations\[0\].sample_idx: expected `int`, got `str`"),
        (_content(activation=[1.0]), r"activations\[0\].activation: expected `StoredArray`, got `list`"),
        (_content(activation=np.zeros((2, 2))), r"activation 0 has shape \[2, 2\]"),
        (_content(activation=np.array([None])), "it has an array of object"),
        (_content(activation=np.zeros(1, "f4,f4")), r"it has an array of \|V8"),
        (OrderedDict(layer=6, activations=[]), "it names collections.OrderedDict"),
    ],
)
def test_other_layouts_are_refused(tmp_path: Path, content: Any, reason: str) -> None:
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(JobError, match=rf"x\.pkl: .*{reason}.*"):
        read_pickle(tmp_path / "x.pkl")


def test_a_missing_pickle_is_named(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"x\.pkl: cannot be read \(No such file"):
        read_pickle(tmp_path / "x.pkl")


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=5), st.integers(0, 10_000))
def test_fuzzed_pickles_are_refused_or_well_formed(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]], length: int
) -> None:
    data = bytearray(pickle.dumps(_content(), protocol=4))
    for place, value in changes:
        data[place % len(data)] = value
    path = tmp_path_factory.getbasetemp() / "fuzzed.pkl"
    path.write_bytes(data[: max(length, 20)])
    try:
        content = read_pickle(path)
    except JobError:
        return
    assert isinstance(content.layer, int)
    assert all(isinstance(item.activation, np.ndarray) for item in content.activations)
