"""The reference that comes with a run is used where it fits, and only there; what is wrong with it is named."""

import json
from pathlib import Path

import numpy as np
import pytest

from pod_job.checking import reference
from pod_job.checking.gate_prompts import gate_prompts
from pod_job.checking.reference import find_reference
from pod_job.checking.shipped import Shipped, read_shipped
from pod_job.checking.shipping import distinct, ship_reference
from pod_job.config.load import load
from pod_job.planning.inputs import Inputs, read_inputs
from pod_job.run_folder import layout
from tools.tiny_model import write_tiny_model


def inputs_of(folder: Path, *more: str, model: str = "qwen2", seed: int = 0) -> Inputs:
    path = write_tiny_model(folder / f"{model}_{seed}", family=model, layers=2, seed=seed)
    return read_inputs(
        load(
            [
                *(f"model.path={path}", "tasks=arc_sample", "tasks.limit=2", "extract.taps=[layer_0.z,layer_1]"),
                *(f"storage.run_dir={folder / 'run'}", "extract.seq_len=128", "extract.too_long=tail", *more),
            ]
        )
    )


@pytest.fixture(scope="module")
def shipped_run(tmp_path_factory: pytest.TempPathFactory, torch_there: None) -> Path:
    folder = tmp_path_factory.mktemp("shipped")
    assert "stored in the run folder" in ship_reference(inputs_of(folder))
    return folder


def sequences_of(inputs: Inputs) -> list[np.ndarray]:
    return distinct([prompt.token_ids for prompt in gate_prompts(inputs)])


def test_a_host_without_torch_is_held_against_what_hugging_faces_model_gave(
    shipped_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = inputs_of(shipped_run)
    assert ship_reference(inputs) == "vectors of Hugging Face's model are in the run folder already"
    backwards = sequences_of(inputs)[::-1]
    there = find_reference(inputs, backwards)
    monkeypatch.setattr(reference, "torch_installed", lambda: False)
    shipped = find_reference(inputs, backwards, read_shipped(inputs, backwards))
    built_in = find_reference(inputs, backwards)
    assert [found.name for found in (there, shipped, built_in)] == [
        reference.TORCH,
        reference.SHIPPED,
        reference.BUILT_IN,
    ]
    assert shipped.why_built_in is None
    assert "torch is not installed" in (built_in.why_built_in or "")
    for tap, truth in there.truths.items():
        assert np.array_equal(shipped.truths[tap], truth)
        np.testing.assert_allclose(shipped.errors[tap], there.errors[tap], rtol=1e-6)
        np.testing.assert_allclose(built_in.truths[tap], truth, rtol=1e-4, atol=1e-5)
        assert 0.5 < np.median(built_in.errors[tap]) / np.median(there.errors[tap]) < 2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"seed": 1}, "another model, other weights"),
        ({"more": "model.dtype=float16"}, "for another model.dtype"),
        ({"more": "extract.taps=[layer_1]"}, "other taps"),
        ({"more": "extract.seq_len=64"}, "other token ids"),
    ],
)
def test_one_of_another_run_is_not_used(shipped_run: Path, change: dict, reason: str) -> None:
    more = [change["more"]] if "more" in change else []
    inputs = inputs_of(shipped_run, *more, seed=change.get("seed", 0))
    assert reason in str(read_shipped(inputs, sequences_of(inputs)))


@pytest.mark.parametrize("name", [layout.REFERENCE, layout.REFERENCE_VECTORS])
def test_a_damaged_one_is_not_used(shipped_run: Path, name: str) -> None:
    inputs = inputs_of(shipped_run)
    content = inputs.folder.read(name)
    try:
        inputs.folder.replace(name, content[:-9] + b"damaged!!")
        assert isinstance(read_shipped(inputs, sequences_of(inputs)), str)
    finally:
        inputs.folder.replace(name, content)
    assert isinstance(read_shipped(inputs, sequences_of(inputs)), Shipped)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"quantization_config": {}, "return_dict": False}, reference.TORCH),
        ({}, reference.BUILT_IN),
    ],
    ids=str,
)
def test_keys_by_which_torch_is_called_are_not_in_the_way_of_a_reference(
    tmp_path: Path, torch_there: None, monkeypatch: pytest.MonkeyPatch, change: dict, name: str
) -> None:
    path = write_tiny_model(tmp_path / "model", layers=2)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | change))
    if name == reference.BUILT_IN:  # what another version may do with a key

        def refuse(*_: object, **_kwargs: object) -> None:
            raise ImportError("needs a package\nthat is not here")

        monkeypatch.setattr("pod_job.checking.hf_reference.load_as_stored", refuse)
    words = [f"model.path={path}", "tasks=arc_sample", "tasks.limit=2", "extract.taps=[layer_1]", "extract.seq_len=128"]
    inputs = read_inputs(load([*words, f"storage.run_dir={tmp_path / 'run'}", "extract.too_long=tail"]))
    found = find_reference(inputs, sequences_of(inputs))
    assert found.name == name
    assert name == reference.TORCH or "does not load model: needs a package, and none came" in str(found.why_built_in)
