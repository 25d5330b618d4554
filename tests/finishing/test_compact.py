"""A compacted run is the same run in fewer files: their layout, for any batches and sizes, and what is refused."""

import json
import shutil
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import google_crc32c
import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from run_content import content, names
from safetensors import safe_open
from sample_runs import PER_BATCH, TAPS, WIDTH, batch, finished_run, identity

from pod_job.checking.verify import verify
from pod_job.commands.merge import main as merge_main
from pod_job.finishing import merge
from pod_job.finishing.compact import compact
from pod_job.finishing.shuffle import shuffle
from pod_job.formats.quantized import SCALE, EightBit, groups, is_eight_bit
from pod_job.formats.safetensors import DTYPE_OF
from pod_job.interop.pickle_export import export_pickles
from pod_job.run_folder import layout
from pod_job.run_folder.commit import Batch, commit_batch
from pod_job.run_folder.identity import claim
from pod_job.run_folder.metadata import Metadata
from pod_job.storage.checksums import as_text, checksum, joined
from pod_job.storage.folder import Folder
from pod_job.storage.open import open_folder

COUNTS = [20, 0, 33, 5, 7, 1, 40]
SMALL = [6, 9]


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
        assert metadata.joined is None
    elif max_bytes == 1 << 30:
        assert names(folder) == [layout.joined_file(series, 1, 7) for series in ("layer_30_norm", "layer_6", "rows")]
    else:
        assert 3 < len(names(folder)) < many
        assert all(len(folder.read(name)) <= max_bytes + 8192 for name in names(folder))
    report = verify(tmp_path)
    assert (report.problems, report.complete, report.rows) == ([], True, sum(COUNTS))
    assert report.bytes == sum(len(folder.read(name)) for name in names(folder))
    assert restamped(merge.merge(folder)) == restamped(metadata)
    assert restamped(compact(folder)) == restamped(metadata) or max_bytes == 1


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
    claim(folder, identity(PER_BATCH * len(counts), taps, dtype))
    for number, count in enumerate(counts, 1):
        commit_batch(folder, stored_as(dtype, number, count, taps), host=0)
    merge.merge(folder)
    before, many = content(folder), len(names(folder))
    metadata = compact(folder, max_bytes)
    assert content(folder) == before
    assert verify(folder.url).sound
    lone = [entry for entry in (*metadata.batches, *metadata.rows_files) if entry.start is None]
    assert len(names(folder)) == len(metadata.joined or []) + len(lone) <= many
    for file in metadata.joined or []:
        opened_by_others(folder, file.file)


def restamped(metadata: Metadata) -> Metadata:
    """Returns the metadata without its time."""
    return msgspec.structs.replace(metadata, merged="")


def stored_as(dtype: str, number: int, count: int, taps: tuple[str, ...]) -> Batch:
    stored = DTYPE_OF[dtype]
    if not is_eight_bit(stored):
        return batch(number, count, taps=taps, dtype=stored)
    plain = batch(number, count, taps=taps, dtype=np.float32)
    scales = np.full((count, groups(WIDTH)), number / 64, SCALE)
    return replace(plain, taps={tap: EightBit((30 * rows).astype(stored), scales) for tap, rows in plain.taps.items()})


def opened_by_others(folder: Folder, file: str) -> None:
    """The safetensors library finds the very tensors in it, and pyarrow the tables."""
    path = folder.local_path(layout.ACTIVATIONS + file)
    with safe_open(str(path), "np") as opened:
        assert opened.metadata()["series"]
        for name in opened.keys():  # noqa: SIM118 - it is no dictionary
            if name.endswith(".parquet"):
                pq.read_table(BytesIO(opened.get_tensor(name).tobytes()))
            assert opened.get_slice(name).get_shape()


def test_what_is_made_of_it_is_the_same_where_a_batch_is_empty(tmp_path: Path) -> None:
    finished_run(open_folder(tmp_path / "run"), COUNTS)
    shutil.copytree(tmp_path / "run", tmp_path / "compacted")
    compact(open_folder(tmp_path / "compacted"))
    for run in ("run", "compacted"):
        export_pickles(tmp_path / run, tmp_path / f"pickles of {run}")
        shuffle(tmp_path / run, tmp_path / f"shuffled {run}", seed=4, part_bytes=4000)
    compacted, plain = (tmp_path / f"pickles of {run}" for run in ("compacted", "run"))
    assert {path.name: path.read_bytes() for path in compacted.iterdir()} == {
        path.name: path.read_bytes() for path in plain.iterdir()
    }
    assert content(open_folder(tmp_path / "shuffled compacted")) == content(open_folder(tmp_path / "shuffled run"))


def test_an_unfinished_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = open_folder(tmp_path)
    claim(folder, identity(24))
    commit_batch(folder, batch(2, 20), host=0)
    before = folder.names("")
    assert merge_main([folder.url, "--compact"]) == 2
    assert "unfinished, 2 batches are missing; finish the job before --compact" in capsys.readouterr().err
    assert folder.names("") == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--compact", "--max-bytes", "0"], "--max-bytes 0: must be at least 1"),
        (["--max-bytes", "9"], "limits the files that --compact makes"),
    ],
)
def test_bad_arguments_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture, arguments: list[str], says: str
) -> None:
    finished_run(open_folder(tmp_path), SMALL)
    assert merge_main([str(tmp_path), *arguments]) == 2
    assert says in capsys.readouterr().err


def test_the_command_tells_how_many_files_there_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finished_run(open_folder(tmp_path), COUNTS)
    assert merge_main([str(tmp_path), "--compact", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"] == 3
