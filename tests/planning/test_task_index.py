"""The index of a large source: counted by all hosts together, kept, and read instead of the source."""

import dataclasses
import json
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pod_job.config.extract import TooLong
from pod_job.config.tasks import TasksConfig
from pod_job.errors import JobError
from pod_job.formats.checksummed_json import read_checksummed, with_checksum
from pod_job.formats.records import encode
from pod_job.planning import shared_work, task_index, token_budget
from pod_job.planning.shared_work import Piece, Share, share_work
from pod_job.planning.task_index import ESTIMATED, Counting, TaskReading, find_tasks, read_index
from pod_job.planning.token_budget import Room, TokenCounter, TokenCounts
from pod_job.prompts.prompt import PromptRules
from pod_job.prompts.sources import listing
from pod_job.prompts.sources.documents import counted
from pod_job.prompts.sources.file_lists import is_named
from pod_job.prompts.tasks import WHOLE_ROWS
from pod_job.prompts.tokenizer import load_tokenizer
from pod_job.run_folder.layout import RUN
from pod_job.storage.folder import Folder
from pod_job.storage.open import open_folder
from tools.tiny_model import write_tiny_model

FILES, ROWS = 6, 40


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TasksConfig:
    """A source of six files, each of which is a part of the index."""
    monkeypatch.setattr(listing, "SMALL_BYTES", -1)
    monkeypatch.setattr(task_index, "PIECE_FILES", 1)
    monkeypatch.setattr(shared_work, "POLL_S", 0.01)
    (tmp_path / "data").mkdir()
    for number in range(FILES):
        rows = [{"text": f"{number} {row} " + "x" * row} for row in range(ROWS)]
        (tmp_path / "data" / f"{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return TasksConfig(path=str(tmp_path / "data"))


@pytest.fixture
def run(tmp_path: Path) -> Folder:
    return open_folder(tmp_path / "run")


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file was counted."""
    times = Counter[str]()

    def count(kind: str, entry: Any, config: TasksConfig) -> Any:
        times[entry.name] += 1
        return counted(kind, entry, config)

    monkeypatch.setattr(task_index, "counted", count)
    return times


@pytest.fixture(scope="module")
def counter(tmp_path_factory: pytest.TempPathFactory) -> TokenCounter:
    tokenizer = load_tokenizer(write_tiny_model(tmp_path_factory.mktemp("model") / "model", layers=1))
    return TokenCounter(tokenizer, PromptRules(1024, TooLong.refuse))


def of_host(host: int, hosts: int) -> TaskReading:
    return TaskReading(Counting.hosts, Share(host, hosts))


def test_hosts_count_each_file_once_and_later_starts_none(
    config: TasksConfig, run: Folder, counts: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with ThreadPoolExecutor(3) as hosts:
        tasks = list(hosts.map(lambda host: find_tasks(config, folder=run, reading=of_host(host, 3)), range(3)))
    assert counts == {f"{number}.jsonl": 1 for number in range(FILES)}
    assert {len(each.samples) for each in tasks} == {FILES * ROWS}
    assert len({each.fingerprint for each in tasks}) == 1
    assert str(tasks[0].samples[ROWS]) == "task 1.jsonl:line_1, sample 0"
    run.create(RUN, [b"{}"])
    monkeypatch.setattr(task_index, "list_source", None)  # nothing is listed or counted again
    later = find_tasks(config, folder=run, reading=of_host(0, 1))
    assert later.fingerprint == tasks[0].fingerprint
    assert later.samples.load(range(100)) == tasks[1].samples.load(range(100))
    assert find_tasks(config, folder=run, reading=ESTIMATED).samples.error == 0  # a workstation reads it too


def test_parts_of_a_lost_host_are_done_by_others(
    config: TasksConfig, run: Folder, counts: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_index, "PATIENCE_S", 0.05)
    tasks = find_tasks(config, folder=run, reading=of_host(1, 3))
    assert len(tasks.samples) == FILES * ROWS
    assert set(counts.values()) == {1}


def test_a_workstation_counts_nothing(config: TasksConfig, run: Folder, counts: Counter[str]) -> None:
    tasks = find_tasks(config, folder=run, reading=ESTIMATED)
    assert len(tasks.samples) == pytest.approx(FILES * ROWS, rel=0.2)
    assert not counts
    assert read_index(run, config) is None
    assert tasks.samples.load(range(3))[0] == find_tasks(config).samples.load([0])[0]
    assert len(tasks.samples.survey()) > FILES  # documents of many places, none of which is taken for another
    limited = find_tasks(dataclasses.replace(config, limit=50), folder=run, reading=ESTIMATED)
    assert (len(limited.samples), limited.samples.error) == (50, 0)


@pytest.mark.parametrize("change", ["content", "removed", "touched"])
def test_a_file_that_was_changed_since_it_was_indexed_is_refused_by_name(
    config: TasksConfig, run: Folder, change: str
) -> None:
    first = find_tasks(config, folder=run, reading=of_host(0, 1))
    run.create(RUN, [b"{}"])
    path = Path(config.path) / "3.jsonl"
    content = path.read_bytes()
    path.unlink()
    if change != "removed":
        path.write_bytes(content if change == "touched" else content.replace(b"x", b"y"))
    if change == "touched":  # copied: equal content with another time
        assert find_tasks(config, folder=run, reading=of_host(0, 1)).fingerprint == first.fingerprint
        return
    with pytest.raises(JobError, match=r"3\.jsonl was changed"):
        find_tasks(config, folder=run, reading=of_host(0, 1))


def test_before_anything_is_stored_a_changed_source_is_counted_again(
    config: TasksConfig, run: Folder, tmp_path: Path
) -> None:
    find_tasks(config, folder=run, reading=of_host(0, 1))
    (tmp_path / "data" / "6.jsonl").write_text('{"text": "more"}\n')
    assert len(find_tasks(config, folder=run, reading=of_host(0, 1)).samples) == FILES * ROWS + 1


def test_an_index_is_not_followed_where_a_stranger_may_have_made_it(config: TasksConfig, run: Folder) -> None:
    find_tasks(config, folder=run, reading=of_host(0, 1))
    index = read_index(run, config)
    assert index is not None
    (name,) = [name for name in run.names("index/") if name.count("/") == 1]
    run.replace(name, with_checksum(b'{"kind": "x"}'))
    assert len(find_tasks(config, folder=run).samples) == FILES * ROWS
    with pytest.raises(JobError, match=rf"{name}: format is missing"):
        find_tasks(config, folder=run, reading=of_host(0, 1))


@pytest.mark.parametrize("kind", ["index", "part"])
@pytest.mark.parametrize("other", ["{top}/private.jsonl", "{top}/data/../private.jsonl", "hf://datasets/a/b@c/x.jsonl"])
def test_a_file_that_the_configuration_does_not_name_is_not_opened_on_the_word_of_an_index(
    config: TasksConfig, run: Folder, kind: str, other: str, tmp_path: Path
) -> None:
    (tmp_path / "private.jsonl").write_bytes((tmp_path / "data/3.jsonl").read_bytes())
    find_tasks(config, folder=run, reading=of_host(0, 1))
    run.create(RUN, [b"{}"])
    for name in run.names("index/"):
        named = f"{config.path}/3.jsonl".encode()
        content = read_checksummed(run.read(name), name)
        run.replace(name, with_checksum(content.replace(named, other.format(top=tmp_path).encode())))
        if kind == "part" and "part_" not in name:
            run.remove(name)
    with pytest.raises(JobError, match=r"which tasks\.path does not name; remove it to count again"):
        find_tasks(config, folder=run, reading=of_host(0, 1))


@pytest.mark.parametrize(
    ("path", "named", "others"),
    [
        ("data", ["data/a.jsonl", "./data/b/a.jsonl"], ["data2/a", "/data/a", "data/../x", "gs://data/a", "a"]),
        ("./data/", ["data/a.jsonl", "./data/a"], ["a"]),
        ("*.jsonl", ["a.jsonl"], ["/a.jsonl", "../a.jsonl", "gs://b/a.jsonl"]),
        ("/data/**/*.jsonl", ["/data/a.jsonl", "/data/b/c.jsonl"], ["data/a.jsonl", "/etc/a.jsonl"]),
        ("~/data/*.jsonl", [str(Path("~/data/a.jsonl").expanduser()), "~/data/a.jsonl"], ["~/a.jsonl"]),
        ("gs://b/x", ["gs://b/x", "gs://b/x/a"], ["gs://b/xy", "gs://c/x", "/b/x", "gs://b/x/../y"]),
        ("gs://b/x/*.jsonl", ["gs://b/x/a.jsonl"], ["gs://b/a.jsonl"]),
        ("org/web", ["hf://datasets/org/web@c/a"], ["hf://datasets/org/other@c/a", "hf://datasets/org/web2@c/a"]),
        ("hf://datasets/org/web/x", ["hf://datasets/org/web@c/x/a"], ["hf://datasets/a/web@c/a", "web/x"]),
    ],
)
def test_files_are_named_by_their_folder_glob_or_dataset(path: str, named: list[str], others: list[str]) -> None:
    assert [url for url in (*named, *others) if is_named(url, path)] == named


@pytest.mark.parametrize("kind", ["index", "part", "budget", "budget part"])
def test_a_record_of_counts_that_was_altered_is_counted_again(
    config: TasksConfig, run: Folder, counter: TokenCounter, kind: str
) -> None:
    budgeted = dataclasses.replace(config, max_tokens=1500) if "budget" in kind else config
    expected = find_tasks(budgeted, counter=counter, folder=run, reading=of_host(0, 1))
    names = [name for name in run.names("index/") if ("tokens_" in name) == ("budget" in kind)]
    assert names
    (parts, whole) = [[name for name in names if ("part_" in name) == part] for part in (True, False)]
    for name in parts if "part" in kind else whole:
        data = bytearray(run.read(name))
        digit = next(at for at in range(len(data) // 2, len(data)) if chr(data[at]).isdigit())
        data[digit] = data[digit] ^ 1
        run.replace(name, bytes(data))
    if "part" in kind:
        for name in whole:
            run.remove(name)
    again = find_tasks(budgeted, counter=counter, folder=run, reading=of_host(0, 1))
    assert again.fingerprint == expected.fingerprint
    assert again.samples.load(range(len(again.samples))) == expected.samples.load(range(len(expected.samples)))


def test_a_copy_elsewhere_is_the_same_source(config: TasksConfig, tmp_path: Path) -> None:
    (tmp_path / "data").rename(tmp_path / "moved")
    moved = dataclasses.replace(config, path=str(tmp_path / "moved"))
    (tmp_path / "data").symlink_to(tmp_path / "moved")
    assert find_tasks(moved).fingerprint == find_tasks(config).fingerprint
    for rules in ({"shuffle": 1}, {"sample": 0.5}, {"field": "other"}):
        assert find_tasks(dataclasses.replace(moved, **rules)).fingerprint != find_tasks(config).fingerprint


def test_a_budget_of_tokens_is_counted_together_and_once(
    config: TasksConfig, run: Folder, counter: TokenCounter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_budget, "PIECE", 16)
    budgeted = dataclasses.replace(config, max_tokens=1500)
    expected = find_tasks(budgeted, counter=counter).samples
    lengths = np.cumsum(counter.counts(find_tasks(config).samples.load(range(FILES * ROWS))))
    assert len(expected) == np.searchsorted(lengths, 1500, side="right") > 16
    with ThreadPoolExecutor(2) as hosts:
        read = hosts.map(
            lambda host: find_tasks(budgeted, counter=counter, folder=run, reading=of_host(host, 2)), (0, 1)
        )
        assert [len(tasks.samples) for tasks in read] == [len(expected)] * 2
    monkeypatch.setattr(token_budget, "count_tokens", None)
    again = find_tasks(budgeted, counter=counter, folder=run, reading=of_host(0, 1))
    assert len(again.samples) == len(expected)
    tiny = dataclasses.replace(config, max_tokens=1)
    monkeypatch.undo()
    monkeypatch.setattr(listing, "SMALL_BYTES", -1)
    with pytest.raises(JobError, match=r"tasks\.max_tokens=1 is less than the \d+ tokens of the first sample"):
        find_tasks(tiny, counter=counter, folder=run, reading=of_host(0, 1))


def test_results_that_are_enough_end_the_work(run: Folder) -> None:
    made: list[int] = []

    def piece(number: int) -> Piece:
        return Piece(f"work/{number}", lambda: made.append(number) or b'{"x":1}', 10.0)

    results = share_work(run, [piece(number) for number in range(100)], Share(), lambda results: len(results) >= 3)
    assert sorted(results) == made == [0, 1, 2]


def test_a_budget_decodes_each_part_once_in_whatever_order_parts_come(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    counts = draw.integers(1, 50, (9, 16)).astype("<u4")
    parts = {number: encode(TokenCounts(1, zlib.compress(part.tobytes()))) for number, part in enumerate(counts)}
    decoded, times = token_budget.decoded, Counter[int]()
    monkeypatch.setattr(token_budget, "decoded", lambda parts, n: times.update([n]) or decoded(parts, n))
    sums = np.cumsum(counts)
    for budget in (0, 40, 900, int(sums[-1]) - 1, int(sums[-1])):
        times.clear()
        room, seen, exceeded = Room(budget), {}, False
        for number in draw.permutation(len(parts)).tolist():
            seen[number] = parts[number]
            exceeded = room.exceeded_by(seen)
        assert (room.samples, exceeded) == (np.searchsorted(sums, budget, side="right"), budget < sums[-1])
        assert max(times.values()) == 1


def test_few_bytes_of_parquet_that_hold_many_rows_are_counted_by_the_footer(run: Folder, tmp_path: Path) -> None:
    rows = WHOLE_ROWS + 1
    text = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array(["some words"]))
    pq.write_table(pa.table({"text": text}), tmp_path / "many.parquet", row_group_size=rows)
    assert (tmp_path / "many.parquet").stat().st_size < 1 << 20
    config = TasksConfig(path=str(tmp_path / "many.parquet"))
    found = find_tasks(config, folder=run, reading=ESTIMATED)
    assert (len(found.samples), found.whole) == (rows, False)
