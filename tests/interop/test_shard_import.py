"""Shards of several layers become a run, as programs write them and as their specification says."""

import gzip
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from pod_job.checking.verify import verify
from pod_job.errors import JobError
from pod_job.interop.pickle_import import import_pickles
from pod_job.interop.shard_reader import SMALL_BYTES
from pod_job.reading.dataset import ActivationDataset

LAYERS = (15, 16)
WIDTH = 4


def sample(number: int, length: int | None, layer: int, dtype: Any = np.float32) -> dict[str, Any]:
    """One sample in one layer: `length` vectors, or one where None."""
    shape = (WIDTH,) if length is None else (length, WIDTH)
    values = np.random.default_rng([number, layer]).standard_normal(shape).astype(dtype)
    return {"sample_idx": number, "activation": values, "shape": shape, "text_preview": "some text"}


def write_shard(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = pickle.dumps(content)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def write_shards(
    folder: Path, cuts: list[int], length: int | None = 3, key: Callable[[int], Any] = int, suffix: str = ".pkl.gz"
) -> None:
    """Writes shards that end before these samples; layer 16 has one sample less in each shard but the last."""
    starts = {15: [0, *cuts[:-1]], 16: [0, *(cut - 1 for cut in cuts[:-1])]}
    ends = {15: cuts, 16: [*(cut - 1 for cut in cuts[:-1]), cuts[-1]]}
    for number in range(len(cuts)):
        content = {
            key(layer): [sample(i, length, layer) for i in range(starts[layer][number], ends[layer][number])]
            for layer in LAYERS
        }
        write_shard(folder / f"shard_{number + 1:04d}{suffix}", content)


def assert_is_what_was_written(run: Path, samples: int, length: int | None = 3) -> None:
    rows = length or 1
    for layer in LAYERS:
        data = ActivationDataset(run, layer=layer)
        expected = np.concatenate([np.atleast_2d(sample(i, length, layer)["activation"]) for i in range(samples)])
        np.testing.assert_array_equal(data[:], expected)
        provenance = data.rows(slice(None))
        assert provenance["sample_idx"].tolist() == [i for i in range(samples) for _ in range(rows)]
        assert provenance["position"].tolist() == ([-1] * samples if length is None else [*range(rows)] * samples)
        assert provenance["task_id"][-1] == f"sample_{samples - 1}"
    assert verify(run).sound


@pytest.mark.parametrize("suffix", [".pkl.gz", ".pkl"])
@pytest.mark.parametrize("key", [int, "layer_{}".format], ids=["numbers", "names"])
@pytest.mark.parametrize("length", [3, None])
def test_shards_without_metadata_are_counted(tmp_path: Path, length: int | None, key: Callable, suffix: str) -> None:
    write_shards(tmp_path, [5, 9, 11], length, key, suffix)
    assert import_pickles(tmp_path, tmp_path / "run").total_samples == 11
    assert_is_what_was_written(tmp_path / "run", 11, length)


def test_the_metadata_beside_them_is_read(tmp_path: Path) -> None:
    write_shards(tmp_path, [5, 9])
    shards = [
        {"shard_id": 1, "filename": "shard_0001.pkl.gz", "layers": [15, 16], "samples_per_layer": {"15": 5, "16": 4}},
        {"shard_id": 2, "filename": "shard_0002.pkl.gz", "layers": [15, 16], "samples_per_layer": {"15": 4, "16": 5}},
    ]
    (tmp_path / "metadata.json").write_text(json.dumps({"total_shards": 2, "total_activations": 18, "shards": shards}))
    import_pickles(tmp_path, tmp_path / "run")
    assert_is_what_was_written(tmp_path / "run", 9)


def test_the_specified_metadata_names_the_model(tmp_path: Path) -> None:
    write_shards(tmp_path, [4], key="layer_{}".format)
    described = {
        "version": "1.0",
        "extraction_config": {"model_name": "Qwen/Qwen2.5-7B", "layers_extracted": [15, 16]},
        "shards": [{"shard_id": 1, "filename": "shard_0001.pkl.gz", "num_samples": 4, "layers": [15, 16]}],
    }
    (tmp_path / "metadata.json").write_text(json.dumps(described))
    assert import_pickles(tmp_path, tmp_path / "run").model_name == "Qwen/Qwen2.5-7B"
    assert_is_what_was_written(tmp_path / "run", 4)


def test_each_host_may_have_a_folder_of_its_own(tmp_path: Path) -> None:
    for host in range(2):
        write_shards(tmp_path / "shards" / f"host_{host}", [2, 5])
    import_pickles(tmp_path / "shards", tmp_path / "run")
    rows = ActivationDataset(tmp_path / "run", layer=15).rows(slice(None))
    samples = [f"host_{host}_sample_{i}" for host in range(2) for i in range(5)]
    assert rows["task_id"].tolist() == [name for name in samples for _ in range(3)]


def test_an_import_that_was_killed_goes_on(tmp_path: Path) -> None:
    write_shards(tmp_path, [5, 9, 11])
    import_pickles(tmp_path, tmp_path / "run")
    (tmp_path / "run/commits/batch_000002.json").unlink()
    import_pickles(tmp_path, tmp_path / "run")
    assert_is_what_was_written(tmp_path / "run", 11)


def test_bfloat16_is_read(tmp_path: Path) -> None:
    items = [sample(i, 2, 15, ml_dtypes.bfloat16) for i in range(3)]
    write_shard(tmp_path / "shard_0001.pkl.gz", {15: items})
    import_pickles(tmp_path, tmp_path / "run", "bfloat16")
    stored = ActivationDataset(tmp_path / "run", layer=15)[:]
    np.testing.assert_array_equal(stored, np.concatenate([item["activation"] for item in items]))


def reshard(change: Callable[[dict], Any]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        content = pickle.loads(gzip.decompress((folder / "shard_0002.pkl.gz").read_bytes()))
        change(content)
        write_shard(folder / "shard_0002.pkl.gz", content)

    return write


class Hostile:
    def __reduce__(self) -> Any:
        return os.system, ("touch /tmp/never",)


def listed(**entry: Any) -> Callable[[Path], Any]:
    return lambda folder: (folder / "metadata.json").write_text(json.dumps({"shards": [entry]}))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda folder: (folder / "shard_0002.pkl.gz").unlink(), "layers have unequal numbers of samples .*is missing"),
        (lambda folder: (folder / "shard_0002.pkl.gz").write_bytes(b"\x1f\x8b garbage"), "2.pkl.gz: cannot be read"),
        (lambda folder: os.truncate(folder / "shard_0002.pkl.gz", 200), "shard_0002.pkl.gz: cannot be read"),
        (
            lambda folder: (folder / "shard_0002.pkl.gz").write_bytes(gzip.compress(bytes(SMALL_BYTES + 9))),
            "expands to more than 16 times its size",
        ),
        (reshard(lambda content: content.update({15: Hostile()})), r"it names .*\.system, which such a file"),
        (reshard(lambda content: content.update(other=[])), "tap 'other' names no layer"),
        (reshard(lambda content: content[15].reverse()), "its layers have other samples than each other"),
        (reshard(lambda content: content[15][0].update(activation=np.zeros(()))), r"has shape \[\], not \[D\]"),
        (
            reshard(lambda content: content[15][0].update(activation=np.zeros((3, 5), np.float32))),
            r"samples of layer_15 have activations of \[4, 5\] numbers",
        ),
        (reshard(lambda content: content[15][0].pop("sample_idx")), "sample_idx is missing|missing required field"),
        (listed(filename="shard_0003.pkl.gz"), "'shard_0003.pkl.gz' is not a shard beside it"),
        (listed(filename="../shard_0001.pkl.gz"), "is not a shard beside it"),
        (
            listed(filename="shard_0001.pkl.gz", num_samples=4, layers=[15, 16]),
            "has not the samples that metadata.json says|layers have unequal numbers",
        ),
    ],
)
def test_what_is_not_a_sound_set_of_shards_is_named(tmp_path: Path, change: Callable, reason: str) -> None:
    write_shards(tmp_path, [5, 9])
    change(tmp_path)
    with pytest.raises(JobError, match=reason) as refused:
        import_pickles(tmp_path, tmp_path / "run")
    assert "\n" not in str(refused.value)
