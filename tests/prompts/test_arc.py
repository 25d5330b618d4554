"""ARC: prompt styles, forms of a task and their way back, and answers read as grids."""

import bz2
import dataclasses
import gzip
import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pod_job.config.tasks import ArcConfig, ArcPrompt, Augment, OnBroken, TaskFormat, TasksConfig
from pod_job.errors import JobError
from pod_job.prompts.arc import Grid
from pod_job.prompts.arc_answers import parse_grid
from pod_job.prompts.arc_prompts import digits, numbered, plain, render
from pod_job.prompts.augment import COLOURS, Augmentation, augmentation
from pod_job.prompts.sources.arc_source import read_arc_files
from pod_job.prompts.sources.listing import list_source
from pod_job.prompts.tasks import read_tasks

TASK: dict[str, Any] = {
    "train": [{"input": [[1, 2]], "output": [[2], [1]]}],
    "test": [{"input": [[3, 4]]}, {"input": [[5, 6]], "output": [[6], [5]]}],
}
grids = st.integers(1, 30).flatmap(
    lambda width: st.lists(st.lists(st.integers(0, 9), min_size=width, max_size=width), min_size=1, max_size=30)
)


@given(st.booleans(), st.integers(0, 3), st.permutations(COLOURS), grids)
def test_an_augmentation_has_a_way_back(mirrored: bool, quarters: int, colours: list[int], grid: Grid) -> None:
    form = Augmentation(mirrored, quarters, tuple(colours))
    assert form.invert(form.apply(grid)) == grid


def test_the_eight_geometries_differ() -> None:
    grid = [[0, 1], [2, 3]]
    forms = [Augmentation(mirrored, quarters).apply(grid) for mirrored in (False, True) for quarters in range(4)]
    assert len({json.dumps(form) for form in forms}) == 8


def test_a_quarter_turn_is_clockwise() -> None:
    assert Augmentation(quarters=1).apply([[1, 2, 3]]) == [[1], [2], [3]]
    assert Augmentation(quarters=1).apply([[1], [2]]) == [[2, 1]]


@pytest.mark.parametrize("augment", list(Augment))
def test_predictions_see_forms_that_depend_on_seed_task_and_number_only(augment: Augment) -> None:
    config = ArcConfig(predictions=9, augment=augment, seed=3)
    forms = [augmentation(config, "a", attempt) for attempt in range(9)]
    assert forms == [augmentation(config, "a", attempt) for attempt in range(9)]
    assert forms[0] == Augmentation()
    assert all(form.colours[0] == 0 for form in forms)
    geometries = {(form.mirrored, form.quarters) for form in forms[:8]}
    assert len(geometries) == (8 if augment in (Augment.geometry, Augment.both) else 1)
    assert len({form.colours for form in forms}) == (9 if augment in (Augment.colours, Augment.both) else 1)


def test_tasks_as_json_lines_are_those_of_a_dictionary(tmp_path: Path) -> None:
    tasks = {"b": TASK, "a": TASK | {"train": []}, "line_4": TASK}
    lines = [{"task_id": "b", **TASK}, {"id": "a", **tasks["a"]}, None, TASK]
    text = "".join("\n" if line is None else json.dumps(line) + "\n" for line in lines)
    (tmp_path / "tasks.json").write_text(json.dumps(tasks))
    config = TasksConfig(path=str(tmp_path / "tasks.json"), arc=ArcConfig(predictions=2))
    expected = read_tasks(config)
    for name in ("lines.jsonl", "lines.json"):  # by its name, and by what is in it
        (tmp_path / name).write_text(text)
        lines_read = read_tasks(dataclasses.replace(config, path=str(tmp_path / name)))
        assert list(lines_read.samples) == list(expected.samples)
        assert lines_read.fingerprint == expected.fingerprint


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"task_id": "x", "train": [', "line 2 is not JSON"),
        ("[" * 100_000, "line 2 is not JSON"),
        ('{"task_id": "x", "train": []}', 'task x must be an object with the lists "train" and "test"'),
        ("7", 'task line_2 must be an object with the lists "train" and "test"'),
        (json.dumps({"task_id": "first", **TASK}), "line 2 has the task_id of line 1; name each task once"),
    ],
)
def test_a_line_that_is_no_task_is_refused_or_left_out(tmp_path: Path, line: str, reason: str) -> None:
    path = tmp_path / "tasks.jsonl"
    path.write_text(f"{json.dumps({'task_id': 'first', **TASK})}\n{line}\n{json.dumps({'id': 3, **TASK})}\n")
    with pytest.raises(JobError, match=f"^tasks.path={path}.*{reason}"):
        read_tasks(TasksConfig(path=str(path)))
    tasks = read_tasks(TasksConfig(path=str(path), on_broken=OnBroken.skip))
    assert [sample.task_id for sample in tasks.samples] == ["first", "first", "3", "3"]
    assert tasks.skipped == 1


def test_several_predictions_per_test_input_are_samples_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "tasks.json"
    path.write_text(json.dumps({"a": TASK, "b": TASK}))
    config = TasksConfig(path=str(path), arc=ArcConfig(predictions=3))
    samples = read_tasks(config).samples
    assert [(s.task_id, s.sample_idx) for s in samples] == [(task, idx) for task in "ab" for idx in range(6)]
    assert samples[0].prompt == render(TASK, 0, ArcPrompt.plain)
    assert samples[3].prompt == render(TASK, 1, ArcPrompt.plain)
    form = augmentation(config.arc, "b", 2)
    assert samples[11].prompt == render(form.apply_to_task(TASK), 1, ArcPrompt.plain)
    assert samples[11].prompt != samples[9].prompt


def test_prompt_styles() -> None:
    assert render(TASK, 1, ArcPrompt.plain) == "Input:\n1 2\nOutput:\n2\n1\n\nInput:\n5 6\nOutput:\n"
    assert render(TASK, 0, ArcPrompt.numbered) == (
        "Input, 1 rows x 2 columns:\n1: 1 2\nOutput, 2 rows x 1 columns:\n1: 2\n2: 1\n\n"
        "Input, 1 rows x 2 columns:\n1: 3 4\nOutput:\n"
    )
    (message,) = render(TASK, 0, ArcPrompt.chat)
    assert isinstance(message, dict)
    assert message["role"] == "user"
    assert message["content"].endswith(str(render(TASK, 0, ArcPrompt.plain)))


@given(grids)
def test_every_style_of_an_answer_is_read(grid: Grid) -> None:
    unnumbered = digits(grid)
    styles = [
        unnumbered,
        plain("Output", grid),
        numbered("Output", grid),
        numbered("Output", grid).removeprefix("Output"),
        f"The rule is simple.\n```\n{unnumbered}\n```\nThat is it.",
        f"{unnumbered}\n\nInput:\n1 2 3",
        unnumbered.replace(" ", ", "),
        json.dumps(grid).replace("], ", "],\n"),
    ]
    assert [parse_grid(text) for text in styles] == [(grid, "")] * len(styles)


def test_rows_without_spaces_are_read() -> None:
    assert parse_grid("012\n345") == ([[0, 1, 2], [3, 4, 5]], "")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no row of digits"),
        ("I do not know", "no row of digits"),
        ("1 2\n3", "rows of 1 and 2 cells"),
        ("1\n" * 31, "31 x 1 cells, more than 30 x 30"),
        ("1 " * 31, "1 x 31 cells, more than 30 x 30"),
    ],
)
def test_an_answer_that_is_no_grid_says_why(text: str, reason: str) -> None:
    assert parse_grid(text) == (None, reason)


def test_no_text_breaks_the_parser() -> None:
    letters = random.Random(0)
    for _ in range(500):
        parse_grid("".join(letters.choice("0123456789 \n:,[]x`") for _ in range(60)))


def ids_of(config: TasksConfig) -> list[str]:
    """Returns the tasks of all samples, each once."""
    return list(dict.fromkeys(sample.task_id for sample in read_tasks(config).samples))


@pytest.mark.parametrize(
    "path", ["d", "d/*.json", "**/*.json", ["d/a.json", "d/b.json"], ["d/a.json", "d/b*"]], ids=str
)
def test_tasks_of_several_files_are_one_source(tmp_path: Path, path: str | list[str]) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/a.json").write_text(json.dumps(TASK))
    (tmp_path / "d/b.json").write_text(json.dumps({"b": TASK, "c": TASK}))
    (tmp_path / "d/.hidden.json").write_text("{")
    paths = [str(tmp_path / one) for one in path] if isinstance(path, list) else str(tmp_path / path)
    for format in (TaskFormat.auto, TaskFormat.arc):
        config = TasksConfig(path=paths, format=format)
        assert ids_of(config) == ["a", "b", "c"]
        assert list(read_arc_files(list_source(config), config)) == ["a", "b", "c"]
    (tmp_path / "d/b.json").write_text(json.dumps({"a": TASK}))
    with pytest.raises(JobError, match=r"d/b\.json: another file has task 'a' too; rename or remove one"):
        read_tasks(TasksConfig(path=paths))


def test_the_folders_of_a_data_set_are_read_where_the_folder_itself_has_no_task(tmp_path: Path) -> None:
    for name in ("evaluation/b", "training/a"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / f"{name}.json").write_text(json.dumps(TASK))
    for format in (TaskFormat.auto, TaskFormat.arc):
        assert ids_of(TasksConfig(path=str(tmp_path), format=format)) == ["b", "a"]


@pytest.mark.parametrize("name", ["t.jsonl.gz", "t.json.gz", "t.jsonl.zst", "t.ndjson.bz2"])
def test_compressed_tasks_are_read(tmp_path: Path, name: str) -> None:
    lines = "".join(json.dumps({"task_id": task_id, **TASK}) + "\n" for task_id in "ab").encode()
    text = json.dumps({"a": TASK, "b": TASK}).encode() if name == "t.json.gz" else lines
    suffix = name.rpartition(".")[2]
    (tmp_path / name).write_bytes(
        {"gz": gzip.compress, "bz2": bz2.compress}.get(suffix, lambda data: pa.compress(data, "zstd", asbytes=True))(
            text
        )
    )
    assert ids_of(TasksConfig(path=str(tmp_path / name))) == ["a", "b"]


def test_one_record_in_a_json_file_is_no_task(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text('{"text": "a"}')
    assert [sample.prompt for sample in read_tasks(TasksConfig(path=str(tmp_path / "t.json"))).samples] == ["a"]
