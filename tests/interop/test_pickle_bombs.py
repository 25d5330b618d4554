"""Pickles that claim, repeat or expand to more than they hold are refused before they take memory or time."""

import gzip
import json
import pickle
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sample_runs import finished_run

from pod_job.errors import JobError
from pod_job.interop.pickle_export import export_pickles
from pod_job.interop.pickle_import import import_pickles
from pod_job.interop.pickle_reader import load_plain, read_pickle
from pod_job.interop.shard_reader import read_shard
from pod_job.reading.dataset import ActivationDataset
from pod_job.storage.open import open_folder

ITEM = {"task_id": "t", "sample_idx": 0, "activation": np.ones(1 << 14, np.float32), "timestamp": "x"}


def repeated(times: int) -> bytes:
    """Returns a pickle of 64 KiB that names one item so many times."""
    return pickle.dumps({"layer": 6, "activations": [ITEM] * times}, protocol=4)


def repeated_array(times: int) -> bytes:
    items = [ITEM | {"sample_idx": number} for number in range(times)]
    return pickle.dumps({"layer": 6, "activations": items}, protocol=4)


def doubled(levels: int) -> bytes:
    """Returns a list that has the one below it twice, and so on."""
    value: list[Any] = []
    for _ in range(levels):
        value = [value, value]
    return pickle.dumps(value)


def key_of_tuples(levels: int) -> bytes:
    """Returns a dictionary whose key takes 2^levels steps to hash."""
    return b"\x80\x04}" + b"N" + b"2\x86".replace(b"2", b"q\x00h\x00") * levels + b"Ns."


BOMBS: dict[str, bytes] = {
    "a memo of 2^31 places": b"\x80\x04Nr\xff\xff\xff\x7f.",
    "bytes of 2^60": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b".",
    "a bytearray of 2^33": b"\x80\x05\x96" + struct.pack("<Q", 1 << 33) + b".",
    "a text of 2^31": b"\x80\x04X\xff\xff\xff\x7f.",
    "a number of 2^31 bytes": b"\x80\x04\x8b\xff\xff\xff\x7f.",
    "a frame of 2^62": b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b"N.",
    "lists": b"\x80\x04" + b"]" * 3000 + b".",
    "marks": b"\x80\x04" + b"(" * 3000 + b".",
    "a memo of millions": b"\x80\x04N" + b"\x94" * 3000 + b".",
    "one item, ten thousand times": repeated(10_000),
    "one array, a hundred times": repeated_array(100),
    "lists in lists": doubled(60),
    "a key of tuples": key_of_tuples(60),
    "a set": pickle.dumps({1, 2}),
    "an object's state": b"\x80\x04}K\x01\x85b.",
    "nothing": b"",
    "no end": b"\x80\x04N",
    "an empty stack": b"\x80\x04.",
    "a place that is not there": b"\x80\x04h\x07.",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_pickle_larger_than_it_may_be_is_refused(bomb: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("pod_job.interop.plain_pickle.FREE_BYTES", 1 << 12)
    data = BOMBS[bomb]
    (tmp_path / "x.pkl").write_bytes(data)
    tracemalloc.start()
    with pytest.raises(JobError, match=r"x\.pkl: ") as refused:
        read_pickle(tmp_path / "x.pkl")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "\n" not in str(refused.value)
    assert most < (16 << 20) + 66 * len(data)


def test_a_few_items_may_be_one(tmp_path: Path) -> None:
    (tmp_path / "x.pkl").write_bytes(repeated(20))
    assert len(read_pickle(tmp_path / "x.pkl").activations) == 20


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_values_that_such_files_have_come_back(protocol: int) -> None:
    value = {
        1: [0, -1, 255, 256, 70_000, -(2**31), 2**31, 2**70, -(2**2000)],
        "text": ["", "é\n" * 200, "x" * 70_000],
        "flags": [True, False, None, 0.1, float("inf")],
        "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [[]], {}],
        "bytes": [b"", b"x" * 300, b"y" * 70_000],
        "numbers": [np.float64(0.5), np.int32(7)],
    }
    assert load_plain("x", pickle.dumps(value, protocol)) == value
    for array in (np.arange(6, dtype=">i2").reshape(2, 3), np.asfortranarray(np.eye(3)), np.zeros((0, 4)), np.bool_(1)):
        stored = load_plain("x", pickle.dumps([array, array], protocol))
        for again in stored:
            np.testing.assert_array_equal(getattr(again, "values", again), array)


def test_any_number_of_vectors_without_numbers_is_refused(tmp_path: Path) -> None:
    item = {"sample_idx": 0, "activation": np.zeros((10**12, 0), np.float32)}
    (tmp_path / "shard_0001.pkl").write_bytes(pickle.dumps({6: [item]}))
    with pytest.raises(JobError, match=r"sample 0 of layer_6 has vectors of no numbers"):
        import_pickles(tmp_path, tmp_path / "run")


def test_a_gzip_bomb_is_not_expanded(tmp_path: Path) -> None:
    path = tmp_path / "shard_0001.pkl.gz"
    with gzip.open(path, "wb", 9) as file:
        for _ in range(200):
            file.write(bytes(1 << 20))
    tracemalloc.start()
    with pytest.raises(JobError, match="expands to more than 16 times its size"):
        read_shard(path)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 160 << 20


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("exported")
    finished_run(open_folder(root / "run"), [6, 5])
    export_pickles(root / "run", root / "pickles")
    return root / "pickles"


def swap(folder: Path) -> None:
    first, second = (folder / f"layer_6_batch_00000{number}.pkl" for number in (1, 2))
    first_data, second_data = first.read_bytes(), second.read_bytes()
    first.write_bytes(second_data)
    second.write_bytes(first_data)


def flip(folder: Path) -> None:
    path = folder / "layer_6_batch_000001.pkl"
    data = bytearray(path.read_bytes())
    vector = np.asarray(read_pickle(path).activations[2].activation).tobytes()
    data[data.index(vector) + 5] ^= 1  # the pickle stays sound
    path.write_bytes(data)


def rewrite(folder: Path) -> None:
    path = folder / "layer_6_batch_000002.pkl"
    path.write_bytes(pickle.dumps(pickle.loads(path.read_bytes()), protocol=5))


@pytest.mark.parametrize("change", [swap, flip, rewrite])
def test_a_changed_pickle_is_not_imported(exported: Path, tmp_path: Path, change: Callable[[Path], None]) -> None:
    for path in exported.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    change(tmp_path)
    with pytest.raises(JobError, match=r"layer_6_batch_00000\d\.pkl: is not the file that metadata\.json describes"):
        import_pickles(tmp_path, tmp_path / "run")
    if change is swap:
        return  # whose layers have other samples than each other
    described = json.loads((tmp_path / "metadata.json").read_text())
    for entry in described["batches"]:
        del entry["crc32c"]  # as of the document, and of earlier versions
    (tmp_path / "metadata.json").write_text(json.dumps(described))
    import_pickles(tmp_path, tmp_path / "again")
    assert len(ActivationDataset(tmp_path / "again", 6)) == 11
