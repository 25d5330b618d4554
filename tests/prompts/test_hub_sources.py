"""Tasks on the Hugging Face hub, served here by a fake hub: found, read in ranges, pinned, refused in one line."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_hub import FakeHub
from test_text_at_scale import json_lines, read, records, texts, zstd

from pod_job.config.tasks import TasksConfig
from pod_job.errors import JobError
from pod_job.planning.shared_work import Share
from pod_job.planning.task_index import ESTIMATED, Counting, TaskReading, find_tasks
from pod_job.prompts.sources import listing, places
from pod_job.prompts.sources.file_lists import matches
from pod_job.run_folder.layout import RUN
from pod_job.storage.open import open_folder
from tools.fuzz.memory import data_bytes, limited_data

REPO = "datasets/org/web"
BASE = f"hf://{REPO}"
DOUBLED = f"[&a0 [x], {', '.join(f'&a{level + 1} [*a{level}, *a{level}]' for level in range(40))}]"
"""YAML of a list whose text has a trillion characters."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    places.hub_folder.cache_clear()  # its addresses are those of the hub before
    with FakeHub().serving(monkeypatch) as serving:
        yield serving


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every source gets an index."""
    monkeypatch.setattr(listing, "SMALL_BYTES", -1)


def parquet(rows: list[dict[str, Any]], group: int = 100) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=group)
    return sink.getvalue().to_pybytes()


def prompts_of(rows: list[dict[str, Any]]) -> list[str]:
    return [row["text"] for row in rows]


WAYS = {
    "t.jsonl": json_lines,
    "t.jsonl.zst": lambda rows: zstd(json_lines(rows)),
    "t.parquet": parquet,
}


@pytest.mark.parametrize(
    ("path", "name"),
    [
        *((BASE + "/data", name) for name in WAYS),
        *((path, "t.jsonl") for path in (BASE + "@main/**/*", "org/web", "org/web@v1")),
    ],
)
def test_files_of_the_hub_are_read_like_files_of_a_disk(
    hub: FakeHub, large: None, name: str, path: str, tmp_path: Path
) -> None:
    hub.page = 2  # a listing is of many pages
    (tmp_path / "data").mkdir()
    for number in range(3):
        content = WAYS[name](records(50, 50 * number))
        (tmp_path / "data" / f"{number}_{name}").write_bytes(content)
        hub.put(REPO, {f"data/{number}_{name}": content})
    hub.repos[REPO].refs["v1"] = hub.repos[REPO].refs["main"]
    tasks = read(path)
    assert texts(tasks) == prompts_of(records(150)) == texts(read(tmp_path / "data"))
    checksums = [str(entry.checksum) for entry in tasks.samples.documents.index.files]
    assert all(checksum.startswith(("sha256:", "git-sha1:")) for checksum in checksums)


@pytest.mark.parametrize("name", ["t.jsonl", "t.parquet"])
def test_a_batch_takes_its_range_of_a_file(hub: FakeHub, large: None, name: str) -> None:
    rows = [{"text": f"{number} {np.random.default_rng(number).bytes(400).hex()}"} for number in range(4000)]
    content = WAYS[name](rows)
    hub.put(REPO, {name: content})
    tasks = read(f"{BASE}/{name}")
    tasks.samples.documents.forget()
    hub.sent.clear()
    assert texts(tasks, range(2000, 2050)) == prompts_of(rows[2000:2050])
    assert 0 < hub.sent[f"{REPO}/{name}"] < len(content) / 8


def test_splits_are_found_as_datasets_finds_them(hub: FakeHub, large: None) -> None:
    files = {
        f"en/{split}-0000{n}-of-00002.parquet": parquet(records(20, 100 * n + s))
        for s, split in enumerate(("train", "test"))
        for n in range(2)
    }
    hub.put(REPO, {**files, "fr/train.parquet": parquet(records(5))})
    assert texts(read("org/web", subset="en")) == prompts_of(records(20) + records(20, 100))
    assert texts(read("org/web", subset="en", split="test[10:30]")) == prompts_of(records(10, 11) + records(10, 101))
    card = "---\nconfigs:\n- config_name: french\n  data_files: fr/*.parquet\n---\n"
    hub.put(REPO, {"README.md": card.encode()})
    assert texts(read("org/web", subset="french")) == prompts_of(records(5))
    with pytest.raises(JobError, match=r"tasks\.subset=english is not there; org/web has french"):
        read("org/web", subset="english")


def test_a_dataset_without_files_that_can_be_read_is_read_as_the_hub_converted_it(hub: FakeHub, large: None) -> None:
    hub.put(REPO, {"load.py": b"pass"})
    hub.put(REPO, {"default/train/0000.parquet": parquet(records(9))}, ref="refs/convert/parquet")
    assert texts(read("org/web")) == prompts_of(records(9))


@pytest.mark.parametrize(
    "configs",
    [
        "2001-99-99",
        "!!int x",
        "9" * 5000,
        "[[[",
        "3",
        "[3, [x], {data_files: 3}]",
        "[{data_files: [{split: train}, {path: x}, {split: [], path: {}}, 3]}]",
        "[{data_files: {split: x}}]",
        "&a [*a]",
    ],
)
def test_a_card_that_says_nothing_of_files_leaves_it_to_their_names(hub: FakeHub, large: None, configs: str) -> None:
    hub.put(REPO, {"README.md": f"---\nconfigs: {configs}\n---\n".encode(), "t.jsonl": json_lines(records(5))})
    assert texts(read("org/web")) == prompts_of(records(5))


@pytest.mark.parametrize(
    "configs",
    [
        f"[{{config_name: {DOUBLED}, data_files: t.jsonl}}]",
        f"[{{data_files: [{{split: {DOUBLED}, path: t.jsonl}}]}}]",
        f"[{{data_files: [{{split: train, path: [t.jsonl, {DOUBLED}]}}]}}]",
        f"[{{data_dir: {DOUBLED}, data_files: t.jsonl}}]",
        f"[{{config_name: 0x{'f' * 9000}, data_files: t.jsonl}}]",
    ],
)
def test_lists_in_a_card_that_hold_each_other_are_not_written_out(hub: FakeHub, large: None, configs: str) -> None:
    hub.put(REPO, {"README.md": f"---\nconfigs: {configs}\n---\n".encode(), "t.jsonl": json_lines(records(5))})
    with limited_data(data_bytes() + (1 << 30)):
        assert texts(read("org/web")) == prompts_of(records(5))


def of_a_host() -> TaskReading:
    return TaskReading(Counting.hosts, Share(0, 1))


def test_a_run_goes_on_with_the_commit_that_it_began_with(hub: FakeHub, large: None, tmp_path: Path) -> None:
    """And not with what the branch has become; a run that has not stored anything takes the new one."""
    first = hub.put(REPO, {"t.jsonl": json_lines(records(100))})
    config, run = TasksConfig(path=f"{BASE}/t.jsonl"), open_folder(tmp_path / "run")
    began = find_tasks(config, folder=run, reading=of_a_host())
    assert began.samples.documents.index.files[0].url == f"{BASE}@{first}/t.jsonl"
    hub.put(REPO, {"t.jsonl": json_lines(records(100, 500))})
    changed = find_tasks(config, folder=run, reading=of_a_host())
    assert texts(changed)[0] == "document 500 " + "x" * (500 % 37)
    assert changed.fingerprint != began.fingerprint
    run.create(RUN, [b"{}"])
    hub.put(REPO, {"t.jsonl": None})
    for reading in (of_a_host(), ESTIMATED):
        later = find_tasks(config, folder=run, reading=reading)
        assert (later.fingerprint, texts(later)) == (changed.fingerprint, texts(changed))


def test_a_commit_that_is_gone_is_said_with_the_file(hub: FakeHub, large: None, tmp_path: Path) -> None:
    commit = hub.put(REPO, {"t.jsonl": json_lines(records(100))})
    config, run = TasksConfig(path=f"{BASE}/t.jsonl"), open_folder(tmp_path / "run")
    find_tasks(config, folder=run, reading=of_a_host())
    run.create(RUN, [b"{}"])
    del hub.repos[REPO].files[commit]
    with pytest.raises(JobError, match=rf"org/web: t\.jsonl at {commit}: .* no such revision") as refused:
        texts(find_tasks(config, folder=run, reading=of_a_host()))
    assert "\n" not in str(refused.value)


def test_content_names_a_source_of_the_hub(hub: FakeHub, large: None) -> None:
    """A commit that changes nothing of the files gives the same fingerprint; another content gives another."""
    hub.put(REPO, {"t.jsonl": json_lines(records(10))})
    first = read(f"{BASE}/t.jsonl").fingerprint
    hub.put(REPO, {"README.md": b"# Web"})
    assert read(f"{BASE}/t.jsonl").fingerprint == first
    hub.put(REPO, {"t.jsonl": json_lines(records(10, 1))})
    assert read(f"{BASE}/t.jsonl").fingerprint != first


def test_a_large_source_is_estimated(hub: FakeHub, large: None, tmp_path: Path) -> None:
    hub.put(REPO, {f"{n}.jsonl": json_lines(records(300, n)) for n in range(6)})
    tasks = find_tasks(TasksConfig(path=BASE), folder=open_folder(tmp_path / "run"), reading=ESTIMATED)
    assert len(tasks.samples) == pytest.approx(1800, rel=0.05)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        (f"{BASE}/none.jsonl", r"datasets/org/web/none\.jsonl does not exist"),
        (f"{BASE}/*.csv", r"web/\*\.csv matches no file"),
        (f"{BASE}@v9/t.jsonl", r"web@v9/t\.jsonl cannot be listed \(the repository has no such revision"),
        ("hf://datasets/org/none/t.jsonl", r"org/none/t\.jsonl cannot be listed \(.*"),
        ("org/none.jsonl", r"tasks\.path=org/none\.jsonl does not exist"),
        ("org/none", r"org/none cannot be listed \("),
        ("hf://datasets/org", "names no dataset; write hf://datasets/OWNER/NAME"),
        (
            "hf://org/web/t.jsonl",
            r"hf://org/web/t\.jsonl: give a path of this machine, gs://bucket/\.\.\. or hf://data",
        ),
        (f"{BASE}/t-00000-of-00003.jsonl", r"does not exist"),
        (f"{BASE}/cut.jsonl.zst", r"cut\.jsonl\.zst cannot be read \(cut short or damaged"),
        (f"{BASE}/cut.parquet", r"cut\.parquet cannot be read \(damaged"),
        ("hf://datasets/org/own/t.jsonl", r"own/t\.jsonl cannot be listed \(.*private.*cloud\.secrets=\[HF_TOKEN\]"),
        ("hf://datasets/org/gated/t.jsonl", r"org/gated: t\.jsonl at \w+: its owner grants access.*HF_TOKEN"),
    ],
)
def test_bad_input_is_one_line_that_names_the_file(hub: FakeHub, large: None, path: str, says: str) -> None:
    whole = json_lines(records(200))
    hub.put(REPO, {"t.jsonl": whole, "cut.jsonl.zst": zstd(whole)[:300], "cut.parquet": parquet(records(200))[:-9]})
    for name in ("own", "gated"):
        hub.put(f"datasets/org/{name}", {"t.jsonl": whole})
        hub.repos[f"datasets/org/{name}"].token = "hf_secret"
    hub.repos["datasets/org/gated"].listed = True
    with pytest.raises(JobError, match=says) as refused:
        texts(read(path))
    assert "\n" not in str(refused.value)
    assert re.match(r"tasks\.(path|format)", str(refused.value))


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("a/*.jsonl", ["a/x.jsonl"], ["a/b/x.jsonl", "x.jsonl", "a/x.jsonl.gz"]),
        ("**/*.jsonl", ["x.jsonl", "a/b/x.jsonl"], ["x.json"]),
        ("a/**", ["a/x", "a/b/x"], ["b/x"]),
        ("a", ["a/x", "a/b/x"], ["ab/x"]),
        ("**/[0-3]?.x", ["07.x", "a/b/3x.x"], ["4a.x", "a/0.x"]),
        ("[!a]*/x", ["b/x", "bc/x"], ["a/x", "/x"]),
        ("a[b].(x)+", ["ab.(x)+"], ["ab.x", "a[b].(x)+"]),
        ("a[", ["a["], ["a"]),
        ("[]x]", ["]", "x"], ["[]x]"]),
        ("[[\\]", ["[", "\\"], ["x"]),
        ("[z-a]", [], ["z", "a"]),
        ("*a" * 60 + "*b", [], ["a" * 250]),
        ("**/*" * 20 + "b", [], ["a/" * 100]),
    ],
)
def test_a_glob_of_names_is_that_of_a_shell(pattern: str, matching: list[str], others: list[str]) -> None:
    assert [name for name in (*matching, *others) if matches(name, pattern)] == matching
