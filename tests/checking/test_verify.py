"""verify finds whatever was done to a run folder, and says which file and why; a sound run is found sound."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sample_runs import batch, finished_run, identity, rewrite

from pod_job.checking.verify import verify
from pod_job.commands.verify import main
from pod_job.errors import JobError
from pod_job.finishing.compact import compact
from pod_job.finishing.merge import merge
from pod_job.formats.rows_table import to_parquet
from pod_job.run_folder import layout
from pod_job.run_folder.commit import commit_batch
from pod_job.run_folder.identity import claim
from pod_job.storage.folder import Folder
from pod_job.storage.local import LocalFolder
from pod_job.storage.open import open_folder

COUNTS = [20, 0, 33]
TAP_FILE = layout.activations_file("layer_6", 3)


def test_a_sound_run_is_sound(new_folder: Callable[[], Folder], capsys: pytest.CaptureFixture[str]) -> None:
    folder = new_folder()
    finished_run(folder, COUNTS)
    assert main([folder.url, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["sound"], report["batches"], report["rows"], report["files"]) == (True, 3, sum(COUNTS), 9)
    assert report["bytes"] == sum(
        len(folder.read(name)) for name in folder.names(layout.ACTIVATIONS) if name != layout.METADATA
    )


def test_an_unfinished_run_is_not_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = open_folder(tmp_path)
    claim(folder, identity(24))
    commit_batch(folder, batch(2, 20), host=0)
    merge(folder)
    assert main([str(tmp_path)]) == 1
    assert "unfinished, 2 batches missing" in capsys.readouterr().out
    assert verify(tmp_path).problems == []


def test_no_run_is_no_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err


def flip(data: bytes) -> bytes:
    return data[:-5] + bytes([data[-5] ^ 1]) + data[-4:]


def renamed_tensor(data: bytes) -> bytes:
    return data.replace(b'"activations"', b'"activationz"')


DAMAGES = {
    "flipped byte": (TAP_FILE, flip, "its record says"),
    "cut": (TAP_FILE, lambda data: data[:-100], "its record says"),
    "grown": (TAP_FILE, lambda data: data + b"\0" * 32, "its record says"),
    "cut in the header": (TAP_FILE, lambda data: data[:100], "truncated"),
    "empty": (TAP_FILE, lambda data: b"", "only 0 bytes long"),
    "wrong dtype": (TAP_FILE, lambda data: data.replace(b'"BF16"', b'"F16" '), "its record says"),
    "another tensor": (TAP_FILE, renamed_tensor, "has no tensor activations"),
    "flipped byte in the rows": (layout.rows_file(3), flip, "rows_batch_000003.parquet"),
    "rows table too short": (layout.rows_file(3), lambda _: to_parquet(batch(3, 32).rows), "its record says"),
    "rows cut": (layout.rows_file(3), lambda data: data[:-9], "its record says"),
    "record cut": (layout.commit_file(3), lambda data: data[:-2], "batch_000003.json: damaged: it does not end"),
    "metadata cut": (layout.METADATA, lambda data: data[:-5], "metadata.json: damaged: it does not end"),
    "metadata altered": (layout.METADATA, lambda data: data.replace(b"tiny", b"tinz"), "not that of its content"),
}


@pytest.mark.parametrize("damage", DAMAGES, ids=str)
def test_damage_is_named(tmp_path: Path, damage: str) -> None:
    finished_run(open_folder(tmp_path), COUNTS)
    name, change, reason = DAMAGES[damage]
    (tmp_path / name).write_bytes(change((tmp_path / name).read_bytes()))
    problems = verify(tmp_path).problems
    assert any(reason in problem and Path(name).name in problem for problem in problems), problems


def test_metadata_of_another_run_is_named(tmp_path: Path) -> None:
    finished_run(open_folder(tmp_path), COUNTS)
    rewrite(
        tmp_path / layout.METADATA,
        lambda metadata: metadata.update(model_name="demo/tinz", provenance=metadata["provenance"] | {"seq_len": 65}),
    )
    problems = verify(tmp_path).problems
    main([str(tmp_path)])
    assert str(tmp_path) not in (tmp_path / "verify" / "report.json").read_text()  # which may be published
    said = "metadata.json: is not of the run in run.json: seq_len is 65 here, 64 there"
    assert any(said in problem for problem in problems), problems


def test_missing_swapped_and_foreign_files_are_named(tmp_path: Path) -> None:
    finished_run(open_folder(tmp_path), [20, 20, 20])
    first, second = (tmp_path / layout.activations_file("layer_6", number) for number in (1, 2))
    first.rename(tmp_path / "aside")
    second.rename(first)
    (tmp_path / "aside").rename(second)
    (tmp_path / layout.rows_file(3)).unlink()
    (tmp_path / "activations/layer_7_batch_000001.safetensors").write_bytes(b"")
    (tmp_path / "activations/layer_6_batch_000004.safetensors").write_bytes(b"")
    problems = "\n".join(verify(tmp_path).problems)
    for expected in (
        "layer_6_batch_000001.safetensors: 4736 bytes with crc32c",
        "layer_6_batch_000002.safetensors: 4736 bytes with crc32c",
        "rows_batch_000003.parquet: missing",
        "layer_7_batch_000001.safetensors: is not a file of this run",
        "layer_6_batch_000004.safetensors: is not a file of this run",
    ):
        assert expected in problems, problems


def test_a_lost_batch_and_a_stale_metadata_are_named(tmp_path: Path) -> None:
    finished_run(open_folder(tmp_path), COUNTS)
    (tmp_path / layout.commit_file(1)).unlink()
    report = verify(tmp_path)
    assert report.missing == [1]
    [problem] = report.problems
    assert (
        "metadata.json: lists batch 1, of which there is no commit record; for commits/batch_000001.json: copy"
        in problem
    )
    with pytest.raises(JobError, match=r"lists batch 1, of which there is no commit record"):
        merge(open_folder(tmp_path))
    (tmp_path / layout.METADATA).unlink()
    assert merge(open_folder(tmp_path)).missing == [1]
    assert verify(tmp_path).problems == []


@pytest.mark.parametrize("name", [TAP_FILE, layout.rows_file(3)])
def test_a_file_of_a_terabyte_is_read_no_further_than_its_record_says(name: str, tmp_path: Path) -> None:
    finished_run(open_folder(tmp_path), COUNTS)
    os.truncate(tmp_path / name, 1 << 40)
    assert any(Path(name).name in problem for problem in verify(tmp_path).problems)
    with pytest.raises(JobError, match=Path(name).name):
        compact(open_folder(tmp_path))


def test_nonfinite_rows_are_counted(tmp_path: Path) -> None:
    folder = open_folder(tmp_path)
    claim(folder, identity(8))
    made = batch(1, 20)
    made.taps["layer_6"][[3, 7], 2] = np.nan
    commit_batch(folder, made, host=0)
    merge(folder)
    report = verify(tmp_path)
    assert (report.nonfinite_rows, report.sound) == (2, True)


def test_each_record_is_read_once_and_all_batches_are_though_one_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished_run(open_folder(tmp_path), COUNTS)
    reads: list[str] = []
    read = LocalFolder.read
    monkeypatch.setattr(LocalFolder, "read", lambda self, name, *part: reads.append(name) or read(self, name, *part))
    assert verify(tmp_path).sound
    assert sorted(name for name in reads if name.startswith(layout.COMMITS)) == [
        layout.commit_file(n) for n in (1, 2, 3)
    ]
    for damage in (
        lambda path: rewrite(path, lambda record: record.update(n_samples=7)),
        lambda path: path.write_text("{"),
    ):
        damage(tmp_path / layout.commit_file(1))
        report = verify(tmp_path)
        assert (report.batches, report.complete, len(report.problems)) == (3, False, 1)
        assert "batch_000001.json" in report.problems[0]
