"""A compacted run is the same run in fewer files, wherever compacting was interrupted, however often it is begun."""

import itertools
import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pyarrow.parquet as pq
import pytest
import requests
from faulty_bucket import Proxy, faulty_bucket
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from sample_runs import BUCKET, PER_BATCH, TAPS, WIDTH, batch, finished_run, identity, rewrite

from pod_job import gcs_faults, gcs_join, inspect, merge, storage
from pod_job.checksums import as_text, checksum, joined
from pod_job.compact import compact
from pod_job.dataset import ActivationDataset
from pod_job.errors import JobError
from pod_job.export import export_pickles
from pod_job.run_folder import rundir
from pod_job.run_folder.commit import Batch, commit_batch
from pod_job.run_folder.eight_bit import SCALE, EightBit, groups, is_eight_bit
from pod_job.run_folder.tensorfile import DTYPE_OF
from pod_job.shuffle import shuffle
from pod_job.storage import Folder, LocalFolder, open_folder
from pod_job.verify import verify

COUNTS = [20, 0, 33, 5, 7, 1, 40]


@pytest.fixture
def proxy(tmp_path: Path, require: Callable, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    monkeypatch.setattr(gcs_faults, "FIRST_WAIT_S", 0.01)
    with faulty_bucket(tmp_path, require, monkeypatch.setenv) as server:
        yield server


def content(folder: Folder) -> Any:
    """All that a reader gets to see, in all the orders in which it reads."""
    found = []
    for tap in json.loads(folder.read(rundir.METADATA))["taps"]:
        data = ActivationDataset(folder.url, tap)
        numbers = np.random.default_rng(0).permutation(len(data))[:50]
        shuffled = [part.tolist() for part in data.batches(16, seed=3, buffer_rows=32, block_rows=8)]
        columns = {name: column.tolist() for name, column in data.rows(slice(None)).items()}
        found.append((tap, np.asarray(data[:]).tobytes(), data[numbers].tobytes(), shuffled, columns, data.statistics))
    return found


def names(folder: Folder) -> list[str]:
    return [name for name in folder.names(rundir.ACTIVATIONS) if name != rundir.METADATA]


@given(st.lists(st.binary(max_size=300), max_size=6))
def test_the_checksum_of_a_whole_follows_from_its_parts(parts: list[bytes]) -> None:
    assert joined(checksum([part]) for part in parts) == checksum([b"".join(parts)])


def test_the_checksum_of_large_parts_follows_too() -> None:
    zeros = bytes(1 << 20)
    crc = 0
    for _ in range(33):
        crc = google_crc32c.extend(crc, zeros)
    assert joined([checksum([zeros])] * 33).crc32c == as_text(crc)


@pytest.mark.parametrize("max_bytes", [1, 9000, 20_000, 1 << 30])
def test_a_compacted_run_is_the_same_run(tmp_path: Path, max_bytes: int) -> None:
    folder = open_folder(tmp_path)
    finished_run(folder, COUNTS)
    before, many, commits = content(folder), len(names(folder)), folder.names("commits/")
    metadata = compact(folder, max_bytes)
    assert content(folder) == before
    assert folder.names("commits/") == commits
    if max_bytes == 1:
        assert len(names(folder)) == many
        assert "joined" not in metadata
    elif max_bytes == 1 << 30:
        assert names(folder) == [rundir.joined_file(series, 1, 7) for series in ("layer_30_norm", "layer_6", "rows")]
    else:
        assert 3 < len(names(folder)) < many
        assert all(len(folder.read(name)) <= max_bytes + 8192 for name in names(folder))
    report = verify(tmp_path)
    assert (report.problems, report.complete, report.rows) == ([], True, sum(COUNTS))
    assert report.bytes == sum(len(folder.read(name)) for name in names(folder))
    assert {**merge.merge(folder), "merged": ""} == {**metadata, "merged": ""}
    assert {**compact(folder), "merged": ""} == {**metadata, "merged": ""} or max_bytes == 1


@settings(max_examples=12, deadline=None)
@given(
    counts=st.lists(st.integers(0, 12), min_size=1, max_size=6),
    taps=st.sampled_from([("layer_0",), TAPS, ("layer_1", "layer_2.z", "layer_3")]),
    dtype=st.sampled_from(["bfloat16", "float32", "float16", "int8", "float8_e4m3fn"]),
    max_bytes=st.integers(4000, 30_000),
)
def test_any_run_stays_what_it_is(
    tmp_path_factory: pytest.TempPathFactory, counts: list[int], taps: tuple[str, ...], dtype: str, max_bytes: int
) -> None:
    folder = open_folder(tmp_path_factory.mktemp("any"))
    rundir.claim(folder, identity(PER_BATCH * len(counts), taps, dtype))
    for number, count in enumerate(counts, 1):
        commit_batch(folder, stored_as(dtype, number, count, taps), host=0)
    merge.merge(folder)
    before, many = content(folder), len(names(folder))
    metadata = compact(folder, max_bytes)
    assert content(folder) == before
    assert verify(folder.url).sound
    lone = [entry for key in ("batches", "rows_files") for entry in metadata[key] if "start" not in entry]
    assert len(names(folder)) == len(metadata.get("joined", [])) + len(lone) <= many
    for file in metadata.get("joined", []):
        opened_by_others(folder, file["file"])


def stored_as(dtype: str, number: int, count: int, taps: tuple[str, ...]) -> Batch:
    stored = DTYPE_OF[dtype]
    if not is_eight_bit(stored):
        return batch(number, count, taps=taps, dtype=stored)
    plain = batch(number, count, taps=taps, dtype=np.float32)
    scales = np.full((count, groups(WIDTH)), number / 64, SCALE)
    return replace(plain, taps={tap: EightBit((30 * rows).astype(stored), scales) for tap, rows in plain.taps.items()})


def opened_by_others(folder: Folder, file: str) -> None:
    """The safetensors library finds the very tensors in it, and pyarrow the tables."""
    path = folder.local_path(rundir.ACTIVATIONS + file)
    with safe_open(str(path), "np") as opened:
        assert opened.metadata()["series"]
        for name in opened.keys():  # noqa: SIM118 - it is no dictionary
            if name.endswith(".parquet"):
                pq.read_table(BytesIO(opened.get_tensor(name).tobytes()))
            assert opened.get_slice(name).get_shape()


class Killed(BaseException):
    """Of a process: nothing that it does afterwards has any effect."""


def dying(patch: pytest.MonkeyPatch, after: int, effects: list[tuple[Any, str]]) -> list[int]:
    """From the `after`-th call of these on nothing happens any more; it dies before (even) or after (odd) the call."""
    left, lock = [after], threading.Lock()

    def around(effect: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            if threading.current_thread().daemon:  # the library looks at the bucket in the background
                return effect(*arguments, **named)
            with lock:
                if left[0] <= 0:
                    left[0] = -1
                    raise Killed
                found = effect(*arguments, **named)
                left[0] -= 2
                if left[0] == -1:
                    raise Killed
                return found

        return call

    for owner, name in effects:
        patch.setattr(owner, name, around(getattr(owner, name)))
    return left


def assert_survives(folder: Folder, effects: list[tuple[Any, str]], every: int = 1) -> None:
    """Compacting, killed at each of its effects in turn and begun again: no row is ever lost, doubled or mixed."""
    before, killed = content(folder), 0
    for after in itertools.count(0, every):
        with pytest.MonkeyPatch.context() as patch:
            dying(patch, after, effects)
            try:
                compact(open_folder(folder.url))
            except Killed:
                killed += 1
            else:
                break
        assert content(open_folder(folder.url)) == before
        for problem in verify(folder.url).problems:
            assert "--compact" in problem or "metadata.json: batches, joined, rows_files differ" in problem
        restore(folder)
    assert killed >= 5
    assert content(folder) == before
    assert verify(folder.url).sound
    assert len(names(folder)) == 2


def restore(folder: Folder) -> None:
    """What the next process does: all of it, and then the run as it was before it was ever compacted."""
    compact(open_folder(folder.url))
    folder.sweep(0.0)
    assert verify(folder.url).sound
    assert [name for name in folder.names("") if name.startswith("joining/")] == []
    joined_names = names(folder)
    folder.remove(rundir.COMPACTION)
    for number, count in enumerate(SMALL, 1):
        commit_batch(folder, batch(number, count, taps=ONE_TAP), host=0)
    for name in joined_names:
        folder.remove(name)
    merge.merge(folder)
    assert len(names(folder)) == 2 * len(SMALL)


SMALL, ONE_TAP = [6, 9], TAPS[:1]


def test_it_may_die_at_any_step(tmp_path: Path) -> None:
    folder = open_folder(tmp_path)
    finished_run(folder, SMALL, ONE_TAP)
    assert_survives(folder, [(os, "link"), (os, "replace"), (os, "unlink"), (LocalFolder, "_write_temporary")])


def test_it_may_die_at_any_request(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gcs_join, "MOST_JOINED", 2)  # so few objects are a tree, too
    folder = open_folder(f"gs://{BUCKET}/run")
    finished_run(folder, SMALL, ONE_TAP)
    assert_survives(folder, [(requests.Session, "send")], every=9)


def test_a_bucket_joins_by_itself(proxy: Proxy) -> None:
    folder = open_folder(f"gs://{BUCKET}/run")
    finished_run(folder, [3] * 70)
    before = ActivationDataset(folder.url, 6)[:]
    proxy.downloaded.clear()
    metadata = compact(folder)
    assert not [name for name in proxy.downloaded if name.endswith((".safetensors", ".parquet"))]
    # 71 objects of each series: two full requests and one of 7, and one of these three.
    assert sorted(map(len, proxy.composed)) == [3] * 3 + [7] * 3 + [32] * 6
    np.testing.assert_array_equal(ActivationDataset(folder.url, 6)[:], before)
    assert verify(folder.url).sound
    for file in metadata["joined"]:
        assert folder.stat(rundir.ACTIVATIONS + file["file"]) == storage.Stored(file["size"], file["crc32c"])
    assert len(names(folder)) == 3
    assert folder.names("joining/") == []


def test_neighbours_in_one_file_are_read_with_one_request(proxy: Proxy) -> None:
    folder = open_folder(f"gs://{BUCKET}/run")
    finished_run(folder, [3] * 10)
    for expected in (10, 1):
        data = ActivationDataset(folder.url, 6)
        proxy.downloaded.clear()
        assert data[:].shape == (30, WIDTH)
        assert len(proxy.downloaded) == expected
        compact(folder)


@pytest.mark.parametrize("where", ["folder", "bucket"])
def test_two_at_once_and_a_merge_leave_one_run(where: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    url = str(tmp_path / "run")
    if where == "bucket":
        request.getfixturevalue("proxy")
        url = f"gs://{BUCKET}/run"
    folder = open_folder(url)
    finished_run(folder, COUNTS)
    before = content(folder)
    with ThreadPoolExecutor(3) as pool:
        running = [pool.submit(compact, open_folder(url), most) for most in (1 << 30, 1 << 30, 9000)]
        running.append(pool.submit(merge.merge, open_folder(url)))
    assert all(each.result()["complete"] for each in running)
    assert content(folder) == before
    compact(folder)  # which removes what the slower of them may have made after the faster one was through
    assert verify(url).problems == []


def test_a_merge_from_before_is_not_the_last_word(tmp_path: Path) -> None:
    class Slow(LocalFolder):
        overtaken = False

        def replace(self, name: str, data: storage.Part) -> storage.Stored:
            if not self.overtaken:
                self.overtaken = True
                compact(open_folder(tmp_path))
            return super().replace(name, data)

    finished_run(open_folder(tmp_path), SMALL)
    before = content(open_folder(tmp_path))
    assert "joined" in merge.merge(Slow(str(tmp_path)))
    assert content(open_folder(tmp_path)) == before


def test_a_late_writer_changes_nothing(tmp_path: Path) -> None:
    folder = open_folder(tmp_path)
    finished_run(folder, COUNTS)
    before = content(folder)
    compact(folder)
    with pytest.raises(JobError, match="describes other files than are there"):
        commit_batch(folder, batch(3, COUNTS[2], noise=1e-2), host=1)
    merge.merge(folder)
    assert content(folder) == before
    problems = "\n".join(verify(tmp_path).problems)
    assert "layer_6_batch_000003.safetensors: lies in a joined file, too" in problems
    compact(folder)
    assert verify(tmp_path).sound


def test_a_reader_that_was_open_is_right_or_told(tmp_path: Path) -> None:
    folder = open_folder(tmp_path)
    finished_run(folder, COUNTS)
    data, mapped = ActivationDataset(folder.url, 6), ActivationDataset(folder.url, 6)
    there = mapped[np.arange(len(mapped))]
    compact(folder)
    np.testing.assert_array_equal(mapped[np.arange(len(mapped))], there)  # its files are gone by name only
    for read in (lambda: data[:], lambda: data[[3, 40]], lambda: data.rows(0)):
        with pytest.raises(JobError, match=r"missing; open the run again if it was compacted meanwhile"):
            read()


def test_an_unfinished_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = open_folder(tmp_path)
    rundir.claim(folder, identity(24))
    commit_batch(folder, batch(2, 20), host=0)
    there = folder.names("")
    assert merge.main([folder.url, "--compact"]) == 2
    assert "unfinished, 2 batches are missing; finish the job before --compact" in capsys.readouterr().err
    assert folder.names("") == there


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--compact", "--max-bytes", "0"], "--max-bytes 0: must be at least 1"),
        (["--max-bytes", "9"], "is of --compact"),
    ],
)
def test_bad_arguments_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture, arguments: list[str], says: str
) -> None:
    finished_run(open_folder(tmp_path), SMALL)
    assert merge.main([str(tmp_path), *arguments]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("where", ["folder", "bucket"])
@pytest.mark.parametrize("change", ["flipped", "missing"])
def test_a_damaged_file_is_not_joined(where: str, change: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    url = str(tmp_path / "run")
    if where == "bucket":
        request.getfixturevalue("proxy")
        url = f"gs://{BUCKET}/run"
    folder, name = open_folder(url), rundir.activations_file("layer_6", 3)
    finished_run(folder, COUNTS)
    data = folder.read(name)
    folder.remove(name)
    if change == "flipped":
        folder.create(name, [data[:-5] + bytes([data[-5] ^ 1]) + data[-4:]])
    there = names(folder)
    with pytest.raises(JobError, match="missing" if change == "missing" else f"{name}: its content is not what was"):
        compact(folder)
    assert set(there) <= set(names(folder))
    assert not any(rundir.is_joined(each) and "layer_6" in each for each in names(folder))
    folder.remove(name)
    folder.create(name, [data])
    compact(folder)
    assert verify(url).sound


JOINED = rundir.joined_file("layer_6", 1, len(COUNTS))
DAMAGES = {
    "a vector": (JOINED, -5, "in it layer_6_batch_000007.safetensors: .* its record says"),
    "its header": (JOINED, 30, "header of"),
    "the header of a batch": (JOINED, 4096 + 40, "in it layer_6_batch_000001"),
    "a rows table": (rundir.joined_file("rows", 1, len(COUNTS)), -20, "in it rows_batch_000007"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_flipped_byte_is_found(tmp_path: Path, damage: str) -> None:
    finished_run(open_folder(tmp_path), COUNTS)
    compact(open_folder(tmp_path))
    name, at, says = DAMAGES[damage]
    data = bytearray((tmp_path / name).read_bytes())
    data[at] ^= 1
    (tmp_path / name).write_bytes(data)
    problems = verify(tmp_path).problems
    assert len(problems) == 1
    assert Path(name).name in problems[0]
    assert re.search(says, problems[0])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: data[:-9], "in it layer_6_batch_000007"),
        (lambda data: data + b"x", "is longer than"),
        (None, "missing"),
    ],
)
def test_a_joined_file_of_another_size_is_found(tmp_path: Path, change: Callable | None, says: str) -> None:
    finished_run(open_folder(tmp_path), COUNTS)
    compact(open_folder(tmp_path))
    path = tmp_path / JOINED
    path.write_bytes(change(path.read_bytes())) if change else path.unlink()
    problems = verify(tmp_path).problems
    assert any(path.name in problem and re.search(says, problem) for problem in problems)
    with pytest.raises(JobError, match=path.name):
        ActivationDataset(tmp_path, 6)[[0, 50]]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda record: record["files"][0]["sizes"].pop(), None),
        (lambda record: record["files"][0].update(first=2), "the commit records leave"),
        (lambda record: record["files"][0].update(series="layer_7"), "the commit records leave none"),
        (lambda record: record["files"].append(record["files"][0]), "the commit records leave none"),
        (lambda record: record["files"][0].update(header_size=-1), "damaged: sizes"),
        (lambda record: record["files"][0].update(header_crc32c="??"), "has no checksum"),
        (lambda record: record.update(format=9), "not the record of a compaction"),
        (lambda record: record["files"].__setitem__(0, 7), "damaged: series"),
    ],
)
def test_a_record_that_lies_is_found(tmp_path: Path, change: Callable, says: str | None) -> None:
    finished_run(open_folder(tmp_path), COUNTS)
    compact(open_folder(tmp_path))
    rewrite(tmp_path / rundir.COMPACTION, change)
    assert any(rundir.COMPACTION in problem or says is None for problem in verify(tmp_path).problems)
    if says:
        with pytest.raises(JobError, match=f"{rundir.COMPACTION}: .*{says}"):
            merge.merge(open_folder(tmp_path))


def test_what_is_made_of_a_compacted_run_is_the_same(tmp_path: Path) -> None:
    finished_run(open_folder(tmp_path / "run"), COUNTS)
    shutil.copytree(tmp_path / "run", tmp_path / "compacted")
    compact(open_folder(tmp_path / "compacted"))
    for run in ("run", "compacted"):
        export_pickles(tmp_path / run, tmp_path / f"pickles of {run}")
        shuffle(tmp_path / run, tmp_path / f"shuffled {run}", seed=4, part_bytes=4000)
    ours, theirs = (tmp_path / f"pickles of {run}" for run in ("compacted", "run"))
    assert {path.name: path.read_bytes() for path in ours.iterdir()} == {
        path.name: path.read_bytes() for path in theirs.iterdir()
    }
    assert content(open_folder(tmp_path / "shuffled compacted")) == content(open_folder(tmp_path / "shuffled run"))


def test_inspect_tells_where_a_batch_lies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finished_run(open_folder(tmp_path), COUNTS)
    assert merge.main([str(tmp_path), "--compact", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"] == 3
    assert inspect.main([str(tmp_path), "--batch", "3", "--json"]) == 0
    assert {file["file"] for file in json.loads(capsys.readouterr().out)["files"]} == set(names(open_folder(tmp_path)))
