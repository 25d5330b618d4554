"""Pickle files of the documented layout become a run; what is not as documented is refused by name."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from sample_runs import TIME, finished_run, joined

from pod_job.dataset import ActivationDataset
from pod_job.errors import JobError
from pod_job.export import export_pickles
from pod_job.import_pickles import import_pickles, main
from pod_job.storage import open_folder
from pod_job.verify import verify


@pytest.fixture
def pickles(tmp_path: Path) -> Path:
    """As a program written by the document leaves them."""
    rng = np.random.default_rng(0)
    entries = []
    for number, count in enumerate((4, 4, 3), 1):
        for layer in (6, 12):
            items = [
                {
                    "task_id": f"task_{number}",
                    "sample_idx": i,
                    "activation": rng.standard_normal(8).astype(np.float32),
                    "timestamp": TIME,
                }
                for i in range(count)
            ]
            name = f"layer_{layer}_batch_{number:06d}.pkl"
            (tmp_path / name).write_bytes(pickle.dumps({"layer": layer, "activations": items}))
            entries.append({"batch_id": number, "layer": f"layer_{layer}", "file": name, "n_samples": count})
    described = {"model_name": "m", "layers_extracted": [6, 12], "hidden_dim": 8, "total_samples": 11}
    (tmp_path / "metadata.json").write_text(json.dumps(described | {"batches": entries}))
    return tmp_path


def test_a_program_by_the_document_is_read(pickles: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(pickles), str(pickles / "run")]) == 0
    assert capsys.readouterr().out == "11 rows in 3 batches\n"
    data = ActivationDataset(pickles / "run", layer=12)
    with open(pickles / "layer_12_batch_000002.pkl", "rb") as file:
        items = pickle.load(file)["activations"]
    np.testing.assert_array_equal(data[4:8], np.stack([item["activation"] for item in items]))
    row = data.rows(9)
    assert (row["task_id"], row["sample_idx"], row["position"], row["token_id"]) == ("task_3", 1, -1, -1)
    assert verify(pickles / "run").sound
    assert data.metadata["total_samples"] == 11
    assert import_pickles(pickles, pickles / "run")["rows"] == 11  # again: nothing is left to do


def test_out_and_back_is_the_same(tmp_path: Path) -> None:
    batches = finished_run(open_folder(tmp_path / "run"), [20, 0, 33])
    export_pickles(tmp_path / "run", tmp_path / "out")
    import_pickles(tmp_path / "out", tmp_path / "back", "bfloat16")
    for tap in ("layer_6", "layer_30_norm"):
        before, after = (ActivationDataset(tmp_path / name, tap) for name in ("run", "back"))
        assert after.dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(after[:], joined(batches, tap))
        for name in ("task_id", "sample_idx"):
            np.testing.assert_array_equal(after.rows(slice(None))[name], before.rows(slice(None))[name])
        assert after.statistics == before.statistics
    export_pickles(tmp_path / "back", tmp_path / "again")
    for path in (tmp_path / "out").glob("*.pkl"):
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


def _entry(number: int, **other: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        described = json.loads((folder / "metadata.json").read_text())
        described["batches"][number].update(other)
        (folder / "metadata.json").write_text(json.dumps(described))

    return change


def _repickle(name: str, change: Callable[[dict], Any]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        content = pickle.loads((folder / name).read_bytes())
        change(content)
        (folder / name).write_bytes(pickle.dumps(content))

    return write


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda folder: (folder / "metadata.json").unlink(), "must lie beside the pickle files"),
        (lambda folder: (folder / "metadata.json").write_text("{"), "not JSON"),
        (lambda folder: (folder / "metadata.json").write_text("{}"), "model_name, .* missing"),
        (_entry(2, batch_id="2"), r"batch_id of batches\[2\] missing or of another type"),
        (_entry(0, file="../x.pkl"), "is not the name of a file beside it"),
        (_entry(5, batch_id=5), "must run from 1 without gaps"),
        (_entry(3, layer="layer_13"), "batch 2 has other layers than batch 1, which has layer_6, layer_12"),
        (_entry(2, n_samples=3), "n_samples of batch 2 must be 4"),
        (lambda folder: (folder / "layer_6_batch_000003.pkl").unlink(), "layer_6_batch_000003.pkl: cannot be read"),
        (
            _repickle("layer_12_batch_000001.pkl", lambda c: c["activations"].reverse()),
            "other samples than layer_6",
        ),
        (
            _repickle("layer_6_batch_000001.pkl", lambda c: c.update(layer=7)),
            "of layer 7, metadata.json says layer_6",
        ),
        (
            _repickle("layer_6_batch_000001.pkl", lambda c: c["activations"][0].update(activation=np.zeros(9))),
            "its activations differ in length",
        ),
    ],
)
def test_what_is_not_as_documented_is_named(pickles: Path, change: Callable[[Path], Any], reason: str) -> None:
    change(pickles)
    with pytest.raises(JobError, match=reason):
        import_pickles(pickles, pickles / "run")


def test_an_unknown_dtype_is_refused(pickles: Path) -> None:
    with pytest.raises(JobError, match="dtype=int8: not one to import to; use float32, bfloat16, float16"):
        import_pickles(pickles, pickles / "run", "int8")
