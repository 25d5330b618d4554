"""Tasks in a bucket: indexed, read in ranges, refused by name once they are changed or may not be read."""

import gzip
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sample_runs import BUCKET, folders
from strict_bucket import BUCKET as STRICT
from strict_bucket import strict_bucket
from test_hub_sources import WAYS, of_a_host, prompts_of
from test_text_at_scale import json_lines, read, records, texts

from pod_job.config.tasks import TasksConfig
from pod_job.errors import JobError
from pod_job.planning.task_index import ESTIMATED, find_tasks
from pod_job.prompts.sources import compressed, lines, listing, places
from pod_job.run_folder.layout import RUN
from pod_job.storage.folder import Folder
from pod_job.storage.open import open_folder

BASE = f"gs://{BUCKET}/web"
ROWS = [{"text": f"{number} {np.random.default_rng(number).bytes(400).hex()}"} for number in range(1600)]


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory, require: Callable[[bool, str], None]) -> Iterator[Folder]:
    """A folder of the emulator with files of each kind."""
    places.bucket_folder.cache_clear()  # its connections are to the server before
    with folders("bucket", tmp_path_factory.mktemp("bucket"), require):
        folder = open_folder(BASE)
        for name, write in WAYS.items():
            folder.create(f"one/{name}", [write(ROWS)])
        parts = [ROWS[start : start + 50] for start in range(0, len(ROWS), 50)]
        folder.create("one/members.jsonl.gz", [gzip.compress(json_lines(part)) for part in parts])
        for number in range(4):
            folder.create(f"shards/{number}.jsonl", [json_lines(ROWS[number * 400 : (number + 1) * 400])])
        yield folder
    places.bucket_folder.cache_clear()


@pytest.fixture(autouse=True)
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every source gets an index."""
    monkeypatch.setattr(listing, "SMALL_BYTES", -1)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Bytes that were read of each file."""
    counts, read_range = Counter[str](), places.FolderFile.read

    def counting(file: places.FolderFile, start: int, size: int) -> bytes:
        data = read_range(file, start, size)
        counts[file.name] += len(data)
        return data

    monkeypatch.setattr(places.FolderFile, "read", counting)
    return counts


@pytest.mark.parametrize("path", [*(f"one/{name}" for name in WAYS), "shards", "shards/*.jsonl", "sh*/**/[0-3].jsonl"])
def test_files_of_a_bucket_are_read_like_files_of_a_disk(bucket: Folder, path: str) -> None:
    assert texts(read(f"{BASE}/{path}")) == prompts_of(ROWS)


@pytest.mark.parametrize("name", ["t.jsonl", "t.parquet", "members.jsonl.gz"])
def test_a_batch_takes_its_range_of_a_file(
    bucket: Folder, taken: Counter[str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "ENTRY_BYTES", 40_000)
    monkeypatch.setattr(compressed, "FED_BYTES", 10_000)
    tasks, stored = read(f"{BASE}/one/{name}"), bucket.stat(f"one/{name}")
    assert stored is not None
    tasks.samples.documents.forget()
    taken.clear()
    assert texts(tasks, range(1000, 1050)) == prompts_of(ROWS[1000:1050])
    assert 0 < taken[name] < stored.size / 4


def test_an_object_may_have_a_name_that_looks_like_a_pattern(bucket: Folder) -> None:
    for number, name in enumerate(("odd/[1].jsonl", "odd/1.jsonl", "odd/a?.jsonl")):
        bucket.create(name, [json_lines(ROWS[number : number + 1])])
    found = [texts(read(f"{BASE}/odd/{name}.jsonl")) for name in ("[1]", "a?", "[12]", "?")]
    assert found == [prompts_of(ROWS[number : number + 1]) for number in (0, 2, 1, 1)]


def test_a_restart_reads_the_index_and_no_file(bucket: Folder, taken: Counter[str], tmp_path: Path) -> None:
    config, run = TasksConfig(path=f"{BASE}/shards"), open_folder(tmp_path / "run")
    first = find_tasks(config, folder=run, reading=of_a_host())
    run.create(RUN, [b"{}"])
    taken.clear()
    later = find_tasks(config, folder=run, reading=of_a_host())
    assert (later.fingerprint, len(later.samples)) == (first.fingerprint, len(ROWS))
    assert sum(taken.values()) < 200_000  # the first samples tell what kind of prompts there are
    assert find_tasks(config, folder=run, reading=ESTIMATED).samples.error == 0


@pytest.mark.parametrize("change", ["content", "rewritten", "removed"])
def test_an_object_of_another_generation_is_refused_unless_its_content_is_equal(
    bucket: Folder, tmp_path: Path, change: str
) -> None:
    name = f"{change}/a.jsonl"
    bucket.create(name, [json_lines(ROWS[:300])])
    config, run = TasksConfig(path=f"{BASE}/{change}"), open_folder(tmp_path / "run")
    began = find_tasks(config, folder=run, reading=of_a_host())
    run.create(RUN, [b"{}"])
    if change == "removed":
        bucket.remove(name)
    else:
        bucket.replace(name, json_lines(ROWS[:300] if change == "rewritten" else ROWS[1:300] + ROWS[:1]))
    if change == "rewritten":
        assert find_tasks(config, folder=run, reading=of_a_host()).fingerprint == began.fingerprint
        return
    began.samples.documents.forget()
    for again in (lambda: find_tasks(config, folder=run, reading=of_a_host()), lambda: texts(began)):
        with pytest.raises(JobError, match=rf"{BASE}/{name} (was changed|cannot be read)") as refused:
            again()
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("status", "says"), [(401, "credentials"), (403, "access refused")])
def test_the_one_of_two_places_that_may_not_be_read_is_named(
    monkeypatch: pytest.MonkeyPatch, status: int, says: str
) -> None:
    places.bucket_folder.cache_clear()
    paths = [f"gs://{STRICT}/a.jsonl", f"gs://{STRICT}/dir/b.jsonl"]
    with strict_bucket(monkeypatch.setenv) as server:
        server.store("a.jsonl", json_lines(records(3)), None, None)
        server.store("dir/b.jsonl", json_lines(records(3)), None, None)
        assert len(read(paths).samples) == 6
        places.bucket_folder.cache_clear()
        server.faults = ["none", status]
        with pytest.raises(JobError, match=rf"(?i)tasks\.path=gs://{STRICT}/dir/b\.jsonl: .*({says})") as refused:
            read(paths)
        assert "\n" not in str(refused.value)
    places.bucket_folder.cache_clear()


def test_a_read_that_is_refused_later_names_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    places.bucket_folder.cache_clear()
    with strict_bucket(monkeypatch.setenv) as server:
        server.store("dir/a.jsonl", json_lines(records(3)), None, None)
        tasks: Any = read(f"gs://{STRICT}/dir/a.jsonl")
        tasks.samples.documents.forget()
        server.faults = [403]
        with pytest.raises(JobError, match=rf"tasks\.path=gs://{STRICT}/dir/a\.jsonl: "):
            texts(tasks)
    places.bucket_folder.cache_clear()
