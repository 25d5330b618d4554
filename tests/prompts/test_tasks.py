"""Task sources: the samples they give, and the one line about what is wrong with a file."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from pod_job.config.tasks import OnBroken, TaskFormat, TasksConfig
from pod_job.errors import JobError
from pod_job.prompts.sources.sample import Sample
from pod_job.prompts.tasks import Tasks, read_tasks

TASK = {"train": [{"input": [[1, 2]], "output": [[2], [1]]}], "test": [{"input": [[3, 4]]}, {"input": [[5, 6]]}]}


def read(path: Path, format: TaskFormat = TaskFormat.arc, **fields: Any) -> Tasks:
    return read_tasks(TasksConfig(format=format, path=str(path), **fields))


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_one_sample_per_test_input_with_the_train_pairs_before_it(tmp_path: Path) -> None:
    samples = read(write(tmp_path / "tasks.json", {"a": TASK})).samples
    assert [(s.task_id, s.sample_idx) for s in samples] == [("a", 0), ("a", 1)]
    assert samples[1].prompt == "Input:\n1 2\nOutput:\n2\n1\n\nInput:\n5 6\nOutput:\n"


def test_a_folder_of_tasks_is_the_file_of_the_same_tasks(tmp_path: Path) -> None:
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name in ("b", "a"):
        write(folder / f"{name}.json", TASK)
    of_folder, of_file = read(folder), read(write(tmp_path / "tasks.json", {"a": TASK, "b": TASK}))
    assert list(of_folder.samples) == list(of_file.samples)
    assert of_folder.fingerprint == of_file.fingerprint


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
    assert [(s.task_id, s.sample_idx, s.prompt) for s in read(path, TaskFormat.jsonl).samples] == [
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
    [
        ("{", "line 2 is not JSON"),
        ("[]", 'line 2 must be an object with the field "text" (tasks.field)'),
        ('{"text": ""}', "line 2: text must be a non-empty text"),
        ('{"text": [{"role": "user"}]}', "a list of messages with role and content"),
        ('{"text": [1, -2]}', "line 2: text must be"),
        ('{"text": "a", "sample_idx": -1}', "line 2: sample_idx=-1 is not a whole number from 0"),
    ],
)
def test_a_broken_line_is_refused_by_number_or_left_out_and_counted(tmp_path: Path, line: str, says: str) -> None:
    path = write(tmp_path / "t.jsonl", f'{{"text": "one"}}\n{line}\n{{"text": "three"}}\n')
    with pytest.raises(JobError) as refused:
        read(path, TaskFormat.jsonl)
    assert says in str(refused.value)
    assert "tasks.on_broken=skip" in str(refused.value)
    tasks = read(path, TaskFormat.jsonl, on_broken=OnBroken.skip)
    assert [sample.task_id for sample in tasks.samples] == ["line_1", "line_3"]
    assert tasks.skipped == 1
    assert says in tasks.messages[0]


def test_one_broken_task_among_ten_thousand_is_named_and_left_out(tmp_path: Path) -> None:
    small = {"train": [], "test": [{"input": [[1]]}]}
    tasks: dict[str, Any] = {f"task_{number:05d}": small for number in range(10_000)}
    tasks["task_07777"] = {"train": [], "test": []}
    path = write(tmp_path / "tasks.json", tasks)
    with pytest.raises(JobError, match="task task_07777 has no test input"):
        read(path)
    kept = read(path, on_broken=OnBroken.skip)
    assert len(kept.samples) == 9_999
    assert kept.skipped == 1
    assert "task_07777" in kept.messages[0]


def test_a_source_of_broken_tasks_only_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "tasks.json", {"a": {}, "b": {}})
    with pytest.raises(JobError, match="all 2 tasks are broken"):
        read(path, on_broken=OnBroken.skip)


def test_an_empty_jsonl_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="is empty"):
        read(write(tmp_path / "t.jsonl", "\n"), TaskFormat.jsonl)


@pytest.mark.parametrize("limit", [1, 3, 5, 9])
def test_a_limit_is_exact_and_never_goes_round(tmp_path: Path, limit: int) -> None:
    path = write(tmp_path / "t.jsonl", "".join(f'{{"text": "{word}"}}\n' for word in "abcde"))
    assert [sample.prompt for sample in read(path, TaskFormat.jsonl, limit=limit).samples] == list("abcde"[:limit])


@pytest.mark.parametrize(("budget", "kept"), [(3, 1), (5, 1), (6, 2), (9, 2), (10, 3), (100, 4)])
def test_a_token_budget_keeps_the_most_samples_that_fit(tmp_path: Path, budget: int, kept: int) -> None:
    path = write(tmp_path / "t.jsonl", "".join(f'{{"text": "{text}"}}\n' for text in ("aaa", "bbb", "cccc", "d")))
    config = TasksConfig(format=TaskFormat.jsonl, path=str(path), max_tokens=budget)
    assert len(read_tasks(config, count_tokens=lambda sample: len(sample.prompt)).samples) == kept


def test_a_token_budget_below_the_first_sample_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", '{"text": "aaa"}\n')
    config = TasksConfig(format=TaskFormat.jsonl, path=str(path), max_tokens=2)
    with pytest.raises(JobError, match=r"tasks\.max_tokens=2 is less than the 3 tokens of the first sample"):
        read_tasks(config, count_tokens=lambda sample: len(sample.prompt))


SURROGATE = "\\ud83d"
TALK = '{"role": "user", "content": "hello"}'


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (f'{{"text": "half {SURROGATE}"}}', "line 2: text"),
        (f'{{"text": "a", "task_id": "half {SURROGATE}"}}', "line 2"),
        (f'{{"text": [{{"role": "user", "content": "{SURROGATE}"}}]}}', "line 2"),
        (f'{{"text": [{{"role": "system", "content": "{SURROGATE}"}}, {TALK}]}}', "line 2"),
        (f'{{"text": [{{"role": "user", "content": [{{"type": "text", "text": "{SURROGATE}"}}]}}]}}', "line 2"),
        (f'{{"text": [{TALK}], "tools": [{{"name": "{SURROGATE}"}}]}}', "line 2"),
    ],
)
def test_half_a_surrogate_pair_is_refused_at_the_start_or_left_out(tmp_path: Path, line: str, says: str) -> None:
    path = write(tmp_path / "t.jsonl", f'{{"text": "one"}}\n{line}\n{{"text": "three"}}\n')
    with pytest.raises(JobError, match=r"half of a surrogate pair") as refused:
        read(path, TaskFormat.jsonl)
    assert says.split(":")[0] in str(refused.value)
    assert str(refused.value).isprintable()
    tasks = read(path, TaskFormat.jsonl, on_broken=OnBroken.skip)
    assert [sample.task_id for sample in tasks.samples] == ["line_1", "line_3"]
    assert tasks.skipped_by_reason == {"broken": 1}


def test_half_a_surrogate_pair_in_the_name_of_an_arc_task_or_a_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "t.json"
    file.write_text(json.dumps({"half \ud83d": TASK}))
    with pytest.raises(JobError, match="half of a surrogate pair"):
        read(file)
    (tmp_path / "texts").mkdir()
    Path(os.fsdecode(os.fsencode(tmp_path / "texts") + b"/\xff.txt")).write_text("good")
    with pytest.raises(JobError, match="half of a surrogate pair") as refused:
        read(tmp_path / "texts", TaskFormat.text)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ('"task_id": 1.5', "task_id=1.5 is neither text nor a whole number"),
        ('"task_id": {}', "task_id={} is neither text nor"),
        ('"task_id": true', "task_id=True is neither text nor"),
        (f'"task_id": "{"x" * 2000}"', "task_id has 2,000 characters"),
        (f'"extra": {"[" * 100_000}{"]" * 100_000}', "line 1 is not JSON"),
    ],
)
def test_a_name_that_is_none_is_refused(tmp_path: Path, fields: str, says: str) -> None:
    with pytest.raises(JobError) as refused:
        read(write(tmp_path / "t.jsonl", f'{{"text": "a", {fields}}}\n'), TaskFormat.jsonl)
    assert says in str(refused.value)


def test_a_name_of_control_characters_is_kept_and_shown_escaped(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", '{"text": "a", "task_id": "\\u001b]52;c;aGk=\\u0007\\n"}\n' * 2)
    with pytest.raises(JobError) as refused:
        read(path, TaskFormat.jsonl)
    assert str(refused.value).isprintable()
    assert read(path, TaskFormat.jsonl, limit=1).samples[0].task_id == "\x1b]52;c;aGk=\x07\n"


def test_a_missing_value_may_be_written_as_null(tmp_path: Path) -> None:
    line = '{"text": [1, 2], "task_id": null, "sample_idx": null, "attention_mask": null, "tools": null}\n'
    (sample,) = read(write(tmp_path / "t.jsonl", line), TaskFormat.jsonl).samples
    assert (sample.task_id, sample.sample_idx, list(sample.prompt)) == ("line_1", 0, [1, 2])


@pytest.mark.parametrize(
    "second",
    ['"task_id": "a"', '"task_id": "a", "sample_idx": 0', '"task_id": 1', '"task_id": "line_1"'],
)
def test_a_sample_with_the_name_of_an_earlier_one_is_refused_or_left_out(tmp_path: Path, second: str) -> None:
    first = {'"task_id": 1': '"task_id": "1"', '"task_id": "line_1"': '"x": 0'}.get(second, '"task_id": "a"')
    lines = [f'{{"text": "one", {first}}}', '{"text": "two", "task_id": "b"}', f'{{"text": "three", {second}}}']
    path = write(tmp_path / "t.jsonl", "\n".join(lines))
    with pytest.raises(JobError, match=r"task .*, sample 0 is there twice"):
        read(path, TaskFormat.jsonl)
    tasks = read(path, TaskFormat.jsonl, on_broken=OnBroken.skip)
    assert [sample.prompt for sample in tasks.samples] == ["one", "two"]
    assert tasks.skipped_by_reason == {"repeated": 1}
    assert len(read(path, TaskFormat.jsonl, limit=2).samples) == 2


def test_arc_tasks_of_one_name_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "tasks"
    folder.mkdir()
    write(folder / "a.json", TASK)
    write(folder / "more.json", {"a": TASK, "b": TASK})
    with pytest.raises(JobError, match=r"more\.json: another file has task 'a' too"):
        read(folder)
    body = json.dumps(TASK)
    with pytest.raises(JobError, match="the key 'a' is there twice"):
        read(write(tmp_path / "t.json", f'{{"a": {body}, "a": {body}}}'))


@pytest.mark.parametrize(
    ("mask", "kept"),
    [([1, 1, 1, 1], [5, 6, 7, 8]), ([0, 0, 1, 1], [7, 8]), ([1, 1, 1, 0], [5, 6, 7]), ([0, True, True, 0], [6, 7])],
)
def test_masked_token_ids_are_not_part_of_the_sample(tmp_path: Path, mask: list[int], kept: list[int]) -> None:
    line = json.dumps({"input_ids": [5, 6, 7, 8], "attention_mask": mask})
    (sample,) = read(write(tmp_path / "t.jsonl", line), TaskFormat.jsonl, field="input_ids").samples
    assert list(sample.prompt) == kept


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        ([1, 0, 1, 1], "attention_mask has a hole at token 1"),
        ([1, 1], "must have a 0 or a 1 for each of the 4 token ids"),
        ([[1, 1, 1, 1]], "must have a 0 or a 1"),
        ([[1], [1, 1], [1], [1]], "must have a 0 or a 1"),
        ([2, 1, 1, 1], "must have a 0 or a 1"),
        ("1111", "must have a 0 or a 1"),
        ([0, 0, 0, 0], "attention_mask keeps no token"),
    ],
)
def test_a_mask_that_is_none_is_refused(tmp_path: Path, mask: Any, says: str) -> None:
    line = json.dumps({"input_ids": [5, 6, 7, 8], "attention_mask": mask})
    with pytest.raises(JobError) as refused:
        read(write(tmp_path / "t.jsonl", line), TaskFormat.jsonl, field="input_ids")
    assert says in str(refused.value)


def test_a_chat_keeps_all_that_its_template_may_read(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    chat = [
        {"role": "user", "content": [{"type": "text", "text": "what is 1 + 1?"}], "name": "kim"},
        {"role": "assistant", "content": None, "reasoning_content": "a sum", "tool_calls": [call]},
        {"role": "tool", "content": "2", "tool_call_id": "x"},
    ]
    tools, documents = [{"type": "function", "function": {"name": "add"}}], [{"title": "sums", "text": "2"}]
    path = write(tmp_path / "t.jsonl", json.dumps({"text": chat, "tools": json.dumps(tools), "documents": documents}))
    (sample,) = read(path, TaskFormat.jsonl).samples
    assert sample.prompt == chat
    assert sample.template_values == {"tools": tools, "documents": documents}
    plain = write(tmp_path / "u.jsonl", json.dumps({"text": chat}))
    assert read(plain, TaskFormat.jsonl).fingerprint != read(path, TaskFormat.jsonl).fingerprint
    with pytest.raises(JobError, match="tools is not a list of objects"):
        read(write(tmp_path / "v.jsonl", json.dumps({"text": chat, "tools": "1"})), TaskFormat.jsonl)


def test_the_fingerprint_of_a_plain_chat_is_that_of_earlier_versions() -> None:
    sample = Sample("a", 0, [{"content": "hello", "role": "user"}])
    assert sample.content() == b'["a", 0, [{"role": "user", "content": "hello"}]]\n'
