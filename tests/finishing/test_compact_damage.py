"""Damaged files are not joined; a joined file or a record that was changed is found and named."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from run_content import names
from sample_runs import BUCKET, finished_run, rewrite

from pod_job.checking.verify import verify
from pod_job.errors import JobError
from pod_job.finishing import merge
from pod_job.finishing.compact import compact
from pod_job.reading.dataset import ActivationDataset
from pod_job.run_folder import layout
from pod_job.storage.open import open_folder

COUNTS = [20, 0, 33, 5, 7, 1, 40]


@pytest.mark.parametrize("where", ["folder", "bucket"])
@pytest.mark.parametrize("change", ["flipped", "missing"])
def test_a_damaged_file_is_not_joined(where: str, change: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    url = str(tmp_path / "run")
    if where == "bucket":
        request.getfixturevalue("proxy")
        url = f"gs://{BUCKET}/run"
    folder, name = open_folder(url), layout.activations_file("layer_6", 3)
    finished_run(folder, COUNTS)
    data = folder.read(name)
    folder.remove(name)
    if change == "flipped":
        folder.create(name, [data[:-5] + bytes([data[-5] ^ 1]) + data[-4:]])
    before = names(folder)
    with pytest.raises(JobError, match="missing" if change == "missing" else f"{name}: its content is not what was"):
        compact(folder)
    assert set(before) <= set(names(folder))
    assert not any(layout.is_joined(joined_name) and "layer_6" in joined_name for joined_name in names(folder))
    folder.remove(name)
    folder.create(name, [data])
    compact(folder)
    assert verify(url).sound


JOINED = layout.joined_file("layer_6", 1, len(COUNTS))
DAMAGES = {
    "a vector": (JOINED, -5, "in it layer_6_batch_000007.safetensors: .* its record says"),
    "its header": (JOINED, 30, "header of"),
    "the header of a batch": (JOINED, 4096 + 40, "in it layer_6_batch_000001"),
    "a rows table": (layout.joined_file("rows", 1, len(COUNTS)), -20, "in it rows_batch_000007"),
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
        (lambda record: record["files"][0].update(header_size=-1), r"files\[0\]\.header_size: expected `int` >= 0"),
        (lambda record: record["files"][0].update(header_crc32c="??"), "has no checksum"),
        (lambda record: record.update(format=9), "format 9, this version reads 2"),
        (lambda record: record["files"].__setitem__(0, 7), r"files\[0\]: expected `object`, got `int`"),
    ],
)
def test_a_record_that_lies_is_found(tmp_path: Path, change: Callable, says: str | None) -> None:
    finished_run(open_folder(tmp_path), COUNTS)
    compact(open_folder(tmp_path))
    rewrite(tmp_path / layout.COMPACTION, change)
    assert any(layout.COMPACTION in problem or says is None for problem in verify(tmp_path).problems)
    if says:
        with pytest.raises(JobError, match=f"{layout.COMPACTION}: .*{says}"):
            merge.merge(open_folder(tmp_path))
