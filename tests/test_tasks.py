"""Task sources: the samples they give, and the one line about what is wrong with a file."""

import json
from pathlib import Path
from typing import Any

import pytest

from pod_job.config import TaskFormat, TasksConfig
from pod_job.errors import JobError
from pod_job.tasks import Tasks, read_tasks

TASK = {"train": [{"input": [[1, 2]], "output": [[2], [1]]}], "test": [{"input": [[3, 4]]}, {"input": [[5, 6]]}]}


def read(path: Path, format: TaskFormat = TaskFormat.arc, limit: int | None = None) -> Tasks:
    return read_tasks(TasksConfig(format=format, path=str(path), limit=limit))


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_one_sample_per_test_input_with_the_train_pairs_before_it(tmp_path: Path) -> None:
    samples = read(write(tmp_path / "tasks.json", {"a": TASK})).samples
    assert [(s.task_id, s.sample_idx) for s in samples] == [("a", 0), ("a", 1)]
    assert samples[1].text == "Input:\n1 2\nOutput:\n2\n1\n\nInput:\n5 6\nOutput:\n"


def test_a_folder_of_tasks_is_the_file_of_the_same_tasks(tmp_path: Path) -> None:
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name in ("b", "a"):
        write(folder / f"{name}.json", TASK)
    assert read(folder) == read(write(tmp_path / "tasks.json", {"a": TASK, "b": TASK}))


def test_the_sample_data_is_read() -> None:
    assert len(read(Path("tests/data/arc/arc_sample.json"), limit=7).samples) == 7


def test_the_fingerprint_follows_the_data(tmp_path: Path) -> None:
    first = read(write(tmp_path / "a.json", {"a": TASK}))
    assert read(write(tmp_path / "b.json", {"a": TASK})).fingerprint == first.fingerprint
    changed = json.loads(json.dumps(TASK))
    changed["test"][0]["input"][0][0] = 9
    assert read(write(tmp_path / "c.json", {"a": changed})).fingerprint != first.fingerprint


def test_json_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", '{"text": "one"}\n\n{"text": "two", "task_id": "x", "sample_idx": 3}\n')
    assert [(s.task_id, s.sample_idx, s.text) for s in read(path, TaskFormat.jsonl).samples] == [
        ("line_1", 0, "one"),
        ("x", 3, "two"),
    ]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "is not readable JSON"),
        ([TASK], "must be a JSON object of tasks, not list"),
        ({}, "there is no task in it"),
        ({"a": {"train": []}}, 'task a must be an object with the lists "train" and "test"'),
        ({"a": {"train": [], "test": []}}, "task a has no test input"),
        ({"a": {"train": [{"input": [[1]]}], "test": [{"input": [[1]]}]}}, "task a, train[0].output is not a grid"),
        ({"a": {"train": [], "test": [{"input": [[1, 2], [3]]}]}}, "task a, test[0].input is not rectangular"),
        ({"a": {"train": [], "test": [{"input": [[10]]}]}}, "task a, test[0].input has the cell 10"),
        ({"a": {"train": [], "test": [{"input": [[True]]}]}}, "has the cell True"),
    ],
)
def test_a_broken_file_is_refused_by_task(tmp_path: Path, content: Any, says: str) -> None:
    with pytest.raises(JobError) as refused:
        read(write(tmp_path / "tasks.json", content))
    assert says in str(refused.value)
    assert "tasks.json" in str(refused.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    for format in TaskFormat:
        with pytest.raises(JobError, match=r"tasks\.path=.*none"):
            read(tmp_path / "none", format)


@pytest.mark.parametrize(
    ("line", "says"),
    [("{", "line 2 is not JSON"), ("[]", "line 2 must be an object"), ('{"text": ""}', 'a non-empty "text"')],
)
def test_a_broken_line_is_refused_by_number(tmp_path: Path, line: str, says: str) -> None:
    path = write(tmp_path / "t.jsonl", f'{{"text": "one"}}\n{line}\n')
    with pytest.raises(JobError) as refused:
        read(path, TaskFormat.jsonl)
    assert says in str(refused.value)


def test_an_empty_jsonl_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="is empty"):
        read(write(tmp_path / "t.jsonl", "\n"), TaskFormat.jsonl)
