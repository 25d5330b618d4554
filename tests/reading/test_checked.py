"""A byte that changed on its way from disk or bucket is noticed on every way of reading, before anybody gets it."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from faulty_bucket import Proxy
from sample_runs import BUCKET, TAPS, WIDTH, batch, finished_run, identity, joined, rewrite

from pod_job.checking.verify import verify
from pod_job.errors import JobError
from pod_job.finishing.compact import compact
from pod_job.finishing.merge import merge
from pod_job.formats.quantized import EightBit, groups
from pod_job.reading.dataset import ActivationDataset
from pod_job.run_folder import layout
from pod_job.run_folder.commit import Batch, commit_batch, read_record
from pod_job.run_folder.identity import claim
from pod_job.storage.checksums import MARK_BYTES, WHOLE_BYTES
from pod_job.storage.folder import Folder
from pod_job.storage.open import open_folder

ROWS = [500, 40_000, 700]
"""Rows of a small file, of one with marks, and of another small one."""


def make(folder: Folder) -> np.ndarray:
    """Returns the vectors of a run of one tap that it writes."""
    assert 2 * WIDTH * ROWS[0] < MARK_BYTES < WHOLE_BYTES < 2 * WIDTH * ROWS[1]
    return joined(finished_run(folder, ROWS, TAPS[:1]), TAPS[0])


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    path = tmp_path_factory.mktemp("original")
    return path, make(open_folder(path))


def shards(data: ActivationDataset, count: int) -> Any:
    return [list(data.batches(900, shard=(index, count))) for index in range(count)]


WAYS: dict[str, Callable[[ActivationDataset], Any]] = {
    "all": lambda data: data[:],
    "slices": lambda data: [data[start : start + 777] for start in range(0, len(data), 777)],
    "steps": lambda data: data[::3],
    "numbers": lambda data: data[np.random.default_rng(0).permutation(len(data))],
    "mask": lambda data: data[np.ones(len(data), bool)],
    "one by one": lambda data: [data[row] for row in (0, ROWS[0], ROWS[0] + 20_000, sum(ROWS) - ROWS[2] - 1)],
    "raw": lambda data: data.raw(slice(None)),
    "batches": lambda data: list(data.batches(900)),
    "batches in order": lambda data: list(data.batches(900, shuffle=False, block_rows=100)),
    "shards": lambda data: shards(data, 2),
}
PLACES = {"first": 4096 + 1, "middle": 4096 + 20_000 * 32, "last": -1}


@pytest.fixture
def flipped(original: tuple[Path, np.ndarray]) -> Iterator[Callable[[int, int], None]]:
    """Flips a bit of a batch's file, until the test is over."""
    before: dict[Path, bytes] = {}

    def flip(number: int, at: int) -> None:
        path = original[0] / layout.activations_file(TAPS[0], number)
        before.setdefault(path, path.read_bytes())
        data = bytearray(before[path])
        data[at] ^= 1
        path.write_bytes(data)

    yield flip
    for path, data in before.items():
        path.write_bytes(data)


@pytest.mark.parametrize("records", ["recorded", "measured"])
@pytest.mark.parametrize("way", WAYS)
def test_it_is_noticed_on_every_way(
    original: tuple[Path, np.ndarray], flipped: Callable[[int, int], None], way: str, records: str, monkeypatch: Any
) -> None:
    if records == "measured":  # as of a run by 0.1.0, or without its commits
        monkeypatch.setattr("pod_job.reading.checked.Checks._recorded", lambda self, file: None)
    path, vectors = original
    np.testing.assert_array_equal(ActivationDataset(path, 6)[:], vectors)
    WAYS[way](ActivationDataset(path, 6))
    for place, at in PLACES.items():
        flipped(2, at)
        with pytest.raises(JobError, match=r"layer_6_batch_000002\.safetensors: its content is not what was stored"):
            WAYS[way](ActivationDataset(path, 6))
        if way != "one by one" or place == "middle":
            WAYS[way](ActivationDataset(path, 6, check="never"))


@pytest.mark.parametrize("way", ["all", "numbers", "batches", "shards"])
def test_it_is_noticed_in_a_small_file(
    original: tuple[Path, np.ndarray], flipped: Callable[[int, int], None], way: str
) -> None:
    for at in (4096, -1):
        flipped(3, at)
        with pytest.raises(JobError, match=r"layer_6_batch_000003\.safetensors: its content is not what was stored"):
            WAYS[way](ActivationDataset(original[0], 6))


def test_only_what_is_read_is_checked(original: tuple[Path, np.ndarray], flipped: Callable[[int, int], None]) -> None:
    flipped(2, -1)
    path, vectors = original
    np.testing.assert_array_equal(ActivationDataset(path, 6)[:20_000], vectors[:20_000])
    np.testing.assert_array_equal(ActivationDataset(path, 6)[[5, 20_000]], vectors[[5, 20_000]])


def test_an_unknown_check_is_refused(original: tuple[Path, np.ndarray]) -> None:
    with pytest.raises(JobError, match=r"check=always: not a way to check .*; use first, never"):
        ActivationDataset(original[0], 6, check="always")


def test_marks_that_lie_are_found_by_verify_and_noticed(tmp_path: Path) -> None:
    folder = open_folder(tmp_path)
    vectors = make(folder)
    rewrite(tmp_path / layout.commit_file(2), lambda record: record["files"][0].update(marks="AAAA" * 99))
    merge(folder)
    assert "the marks in its record are of other content" in "".join(verify(tmp_path).problems)
    np.testing.assert_array_equal(ActivationDataset(tmp_path, 6)[:], vectors)  # they are measured


def test_a_compacted_run_is_checked(tmp_path: Path) -> None:
    folder = open_folder(tmp_path)
    vectors = make(folder)
    metadata = compact(folder)
    starts = {entry.batch_id: entry.offset for entry in metadata.batches}
    path = tmp_path / layout.ACTIVATIONS / metadata.batches[0].file
    whole = path.read_bytes()
    for way, (number, row) in itertools.product(("all", "numbers", "batches"), ((1, 0), (2, 39_999), (3, 699))):
        np.testing.assert_array_equal(ActivationDataset(tmp_path, 6)[:], vectors)
        data = bytearray(whole)
        data[starts[number] + row * 32] ^= 1
        path.write_bytes(data)
        with pytest.raises(JobError, match=r"layer_6_batches_000001-000003.*: its content is not what was stored"):
            WAYS[way](ActivationDataset(tmp_path, 6))
        path.write_bytes(whole)


def test_rows_of_eight_bits_are_checked_with_their_scales(tmp_path: Path) -> None:
    folder = open_folder(tmp_path)
    claim(folder, identity(16, TAPS[:1], "int8"))
    for number, count in ((1, 70_000), (2, 300)):
        made = batch(number, count, taps=TAPS[:1])
        values = (np.asarray(made.taps[TAPS[0]], np.float32) * 9).astype(np.int8)
        taps = {TAPS[0]: EightBit(values, np.ones((count, groups(WIDTH)), ml_dtypes.bfloat16))}
        commit_batch(folder, Batch(number, made.n_samples, made.rows, taps), host=0)
    merge(folder)
    assert read_record(folder, 1).files[0].marks
    for number, at in ((1, 4096), (1, 4096 + 80_000), (1, -1), (2, 4096), (2, -1)):
        path = tmp_path / layout.activations_file(TAPS[0], number)
        whole = path.read_bytes()
        data = bytearray(whole)
        data[at] ^= 1
        path.write_bytes(data)
        for way in ("all", "numbers", "batches"):
            with pytest.raises(JobError, match=rf"batch_00000{number}.*: its content is not what was stored"):
                WAYS[way](ActivationDataset(tmp_path, 6))
        path.write_bytes(whole)


def test_a_bucket_gives_what_was_stored_and_nothing_is_read_twice(proxy: Proxy) -> None:
    folder = open_folder(f"gs://{BUCKET}/run")
    vectors = make(folder)
    data = ActivationDataset(folder.url, 6)
    proxy.downloaded.clear()
    np.testing.assert_array_equal(data[:], vectors)
    assert len([name for name in proxy.downloaded if name.endswith(".safetensors")]) == 3
    proxy.faults = ["flip"]
    np.testing.assert_array_equal(data[100:400], vectors[100:400])
    proxy.faults = ["flip"]
    np.testing.assert_array_equal(data[ROWS[0] + 100 : ROWS[0] + 4000], vectors[ROWS[0] + 100 : ROWS[0] + 4000])
    assert proxy.faults == []
    proxy.faults = ["flip", "flip"]
    with pytest.raises(JobError, match=r"layer_6_batch_000002.*: its content is not what was stored"):
        data[ROWS[0] + 100 : ROWS[0] + 4000]


def test_vectors_are_of_the_dtype_that_the_sizes_here_are_of(original: tuple[Path, np.ndarray]) -> None:
    assert original[1].dtype == ml_dtypes.bfloat16
