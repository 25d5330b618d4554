"""Pickle files of the documented layout become a run; what is not as documented is refused by name."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from msgspec.structs import replace
from sample_runs import TIME, finished_run, joined

from pod_job.checking.verify import verify
from pod_job.commands.import_pickles import main
from pod_job.errors import JobError
from pod_job.interop.pickle_export import export_pickles
from pod_job.interop.pickle_import import import_pickles
from pod_job.reading.dataset import ActivationDataset
from pod_job.storage.checksums import checksum
from pod_job.storage.open import open_folder


def write_pickles(folder: Path, hosts: list[list[int]], place: str = "") -> list[dict[str, Any]]:
    """Writes pickles as a program by the document does; each host numbers its batches, of so many samples, from 1.

    Files of host h lie in `place`, in which {} is h. Returns the items of layer 12 in order of host and batch.
    """
    rng = np.random.default_rng(0)
    entries, layer_12_items = [], []
    for host, counts in enumerate(hosts):
        (folder / place.format(host)).mkdir(exist_ok=True)
        for number, count in enumerate(counts, 1):
            for layer in (6, 12):
                items = [
                    {
                        "task_id": f"task_{host}_{number}",
                        "sample_idx": i,
                        "activation": rng.standard_normal(8).astype(np.float32),
                        "timestamp": TIME,
                    }
                    for i in range(count)
                ]
                name = f"{place.format(host)}layer_{layer}_batch_{number:06d}.pkl"
                (folder / name).write_bytes(pickle.dumps({"layer": layer, "activations": items}))
                entries.append({"batch_id": number, "layer": f"layer_{layer}", "file": name, "n_samples": count})
            layer_12_items += items
    total = sum(map(sum, hosts))
    described = {"model_name": "m", "layers_extracted": [6, 12], "hidden_dim": 8, "total_samples": total}
    (folder / "metadata.json").write_text(json.dumps(described | {"batches": entries}))
    return layer_12_items


@pytest.fixture
def pickles(tmp_path: Path) -> Path:
    write_pickles(tmp_path, [[4, 4, 3]])
    return tmp_path


def test_a_program_by_the_document_is_read(pickles: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(pickles), str(pickles / "run")]) == 0
    assert capsys.readouterr().out == "11 rows in 3 batches\n"
    data = ActivationDataset(pickles / "run", layer=12)
    with open(pickles / "layer_12_batch_000002.pkl", "rb") as file:
        items = pickle.load(file)["activations"]
    np.testing.assert_array_equal(data[4:8], np.stack([item["activation"] for item in items]))
    row = data.rows(9)
    assert (row["task_id"], row["sample_idx"], row["position"], row["token_id"]) == ("task_0_3", 1, -1, -1)
    assert verify(pickles / "run").sound
    assert data.metadata.total_samples == 11
    assert import_pickles(pickles, pickles / "run").rows == 11  # again: nothing is left to do


def test_the_identity_follows_every_key_that_is_listed_of_a_batch(pickles: Path) -> None:
    path = pickles / "metadata.json"
    described = json.loads(path.read_text())
    described["batches"][0]["made_by"] = "another program"
    path.write_text(json.dumps(described))
    metadata = import_pickles(pickles, pickles / "run")
    listed = json.dumps(described["batches"], sort_keys=True).encode()
    assert metadata.provenance.tasks.fingerprint == checksum([listed]).crc32c


@pytest.mark.parametrize(
    ("hosts", "place", "batches"),
    [
        ([[4, 4, 3], [4, 4, 4, 1], [2]], "host_{}/", 7),  # 26 samples, four to a batch
        ([[4, 3], [4, 1]], "host_{}_", 3),
        ([[3, 1, 7, 2, 5, 4, 6]], "", 4),
        ([[1, 5], [5, 5]], "{}/", 4),
        ([[0, 3, 0], [0]], "{}/", 1),
        ([[3, 3], [3, 3]], "{}/", 4),
        ([[2, 0, 2]], "", 2),
    ],
)
def test_batches_of_any_size_are_taken_whole(tmp_path: Path, hosts: list[list[int]], place: str, batches: int) -> None:
    items = write_pickles(tmp_path, hosts, place)
    described = import_pickles(tmp_path, tmp_path / "run")
    assert described.rows == described.total_samples == len(items) == sum(map(sum, hosts))
    assert (described.total_batches, described.complete) == (batches, True)
    data = ActivationDataset(tmp_path / "run", layer=12)
    rows = data.rows(slice(None))
    stored = zip(rows["task_id"].tolist(), rows["sample_idx"].tolist(), data[:], strict=True)
    vectors = {(task, sample): vector for task, sample, vector in stored}
    assert len(vectors) == len(items)
    for item in items:
        np.testing.assert_array_equal(vectors[item["task_id"], item["sample_idx"]], item["activation"])
    assert verify(tmp_path / "run").sound
    sizes = [entry.n_samples for entry in described.batches if entry.layer == "layer_12"]
    assert set(sizes[:-1]) <= {max(map(max, hosts))}


def test_an_import_that_was_killed_goes_on(tmp_path: Path) -> None:
    write_pickles(tmp_path, [[4, 3], [2, 4, 1]], "{}/")
    whole = import_pickles(tmp_path, tmp_path / "whole")
    import_pickles(tmp_path, tmp_path / "run")
    for name in ("commits/batch_000002.json", "activations/layer_12_batch_000002.safetensors"):
        (tmp_path / "run" / name).unlink()
    again = import_pickles(tmp_path, tmp_path / "run")
    assert replace(again, merged="") == replace(whole, merged="")
    assert verify(tmp_path / "run").sound


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
        sums = ("mean", "variance", "mean_norm", "mean_squared_norm")  # over other batches: rounded otherwise
        for name in sums:
            np.testing.assert_allclose(after.statistics[name], before.statistics[name], rtol=1e-12, atol=1e-15)
        assert {k: v for k, v in after.statistics.items() if k not in sums} == {
            k: v for k, v in before.statistics.items() if k not in sums
        }
    export_pickles(tmp_path / "back", tmp_path / "again")
    for path in (tmp_path / "out").glob("*.pkl"):
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


def _entry(number: int, **other: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        described = json.loads((folder / "metadata.json").read_text())
        described["batches"][number].update(other)
        (folder / "metadata.json").write_text(json.dumps(described))

    return change


def _sizes(*sizes: int) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for number in range(2 * len(sizes)):
            _entry(number, n_samples=sizes[number // 2])(folder)

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
        (lambda folder: (folder / "metadata.json").write_text("{"), "Input data was truncated"),
        (
            lambda folder: (folder / "metadata.json").write_text("{}"),
            "model_name is missing; it must be as",
        ),
        (_entry(2, batch_id="2"), r"batches\[2\]\.batch_id: expected `int`, got `str`"),
        (_entry(0, file="../x.pkl"), "is not the name of a file beside it"),
        (_entry(5, batch_id=5), "must run from 1 without gaps"),
        (_entry(3, layer="layer_13"), "batch 2 has other layers than batch 1, which has layer_6, layer_12"),
        (_entry(2, n_samples=3), "n_samples of batch 2 must be one number, 0 or more, for all its layers"),
        (_entry(2, file="./layer_6_batch_000001.pkl"), "lists layer_6_batch_000001.pkl twice"),
        (_sizes(3, 4, 3), "layer_6_batch_000001.pkl: has 4 activations, metadata.json says n_samples=3"),
        (_sizes(0, 0, 0), "batches has no samples"),
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
