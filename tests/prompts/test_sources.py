"""Task sources beside ARC: folders of text, token arrays and datasets give what was written, or say why not."""

import json
import re
import tracemalloc
from datetime import datetime
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from safetensors.numpy import save_file

from pod_job.config.tasks import OnBroken, TaskFormat, TasksConfig
from pod_job.errors import JobError
from pod_job.prompts.tasks import Tasks, read_tasks

WORDS = ["one", "two", "three", "four"]
CHAT = [{"role": "user", "content": "hello"}]


def read(path: Path, format: TaskFormat, vocab: int = 100, **fields: Any) -> Tasks:
    return read_tasks(TasksConfig(format=format, path=str(path), **fields), vocab)


def test_a_folder_of_text_gives_its_files_in_the_order_of_their_paths(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name, text in (("b.txt", "two"), ("a.txt", "one"), ("sub/c.txt", "three"), ("notes.md", "no")):
        (tmp_path / name).write_text(text)
    samples = read(tmp_path, TaskFormat.text).samples
    assert [(s.task_id, s.prompt) for s in samples] == [("a", "one"), ("b", "two"), ("sub/c", "three")]


def test_text_that_is_not_utf8_or_empty_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "b.txt").write_text("")
    (tmp_path / "c.txt").write_text("good")
    with pytest.raises(JobError, match=r"a\.txt is not readable UTF-8 text"):
        read(tmp_path, TaskFormat.text)
    tasks = read(tmp_path, TaskFormat.text, on_broken=OnBroken.skip)
    assert [sample.task_id for sample in tasks.samples] == ["c"]
    assert tasks.skipped == 2


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.int64])
def test_token_arrays_give_their_rows(tmp_path: Path, dtype: Any) -> None:
    tokens = np.arange(12).reshape(3, 4).astype(dtype)
    np.save(tmp_path / "t.npy", tokens)
    save_file({"tokens": tokens}, tmp_path / "t.safetensors")
    save_file({"tokens": tokens, "lengths": np.array([4, 2, 1])}, tmp_path / "ragged.safetensors")
    for name in ("t.npy", "t.safetensors"):
        samples = read(tmp_path / name, TaskFormat.tokens).samples
        np.testing.assert_array_equal([sample.prompt for sample in samples], tokens)
    ragged = read(tmp_path / "ragged.safetensors", TaskFormat.tokens).samples
    assert [list(sample.prompt) for sample in ragged] == [[0, 1, 2, 3], [4, 5], [8]]


@pytest.mark.parametrize(
    ("name", "array", "says"),
    [
        ("t.npy", np.array([[1, 100]]), "row_0, sample 0 has the token id 100; the model's are 0..99"),
        ("t.npy", np.array([[1, -1]]), "has the token id -1"),
        ("t.npy", np.array([[2**40, 1]]), f"has the token id {2**40}"),
        ("t.npy", np.array([1, 2]), "tokens is int64 [2]; whole numbers [n, S] are needed"),
        ("t.npy", np.array([[0.5]]), "tokens is float64 [1, 1]"),
        ("t.npy", np.zeros((0, 4), int), "is empty"),
    ],
)
def test_arrays_that_are_not_token_ids_are_refused(tmp_path: Path, name: str, array: np.ndarray, says: str) -> None:
    np.save(tmp_path / name, array)
    with pytest.raises(JobError) as refused:
        read(tmp_path / name, TaskFormat.tokens)
    assert says in str(refused.value)


def test_a_file_without_tokens_is_refused(tmp_path: Path) -> None:
    save_file({"ids": np.zeros((1, 2), np.int32)}, tmp_path / "t.safetensors")
    with pytest.raises(JobError, match="has no tensor 'tokens' or 'input_ids'; it has ids"):
        read(tmp_path / "t.safetensors", TaskFormat.tokens)
    save_file({"tokens": np.zeros((1, 2), np.int32), "lengths": np.array([3])}, tmp_path / "u.safetensors")
    with pytest.raises(JobError, match=r"row 0: lengths says 3, rows have 1\.\.2 tokens"):
        read(tmp_path / "u.safetensors", TaskFormat.tokens)
    (tmp_path / "v.npy").write_bytes(b"nothing")
    with pytest.raises(JobError, match=r"v\.npy cannot be read"):
        read(tmp_path / "v.npy", TaskFormat.tokens)


def local_datasets(tmp_path: Path, columns: dict[str, list[Any]]) -> dict[str, Path]:
    """Writes one dataset twice: as a folder of parquet files, and with `save_to_disk`."""
    made = datasets.Dataset.from_dict(columns)
    (tmp_path / "parquet").mkdir()
    made.to_parquet(tmp_path / "parquet" / "train.parquet")
    datasets.DatasetDict({"train": made}).save_to_disk(tmp_path / "saved")
    return {"parquet": tmp_path / "parquet", "saved": tmp_path / "saved"}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["parquet", "saved"])
def test_a_dataset_gives_its_rows_mapped_or_streamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, streaming: bool
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    path = local_datasets(tmp_path, {"body": WORDS, "extra": [1, 2, 3, 4]})[kind]
    samples = read(path, TaskFormat.dataset, field="body", streaming=streaming).samples
    assert [(s.task_id, s.prompt) for s in samples] == [(f"row_{i}", word) for i, word in enumerate(WORDS)]
    assert samples[2].prompt == "three"
    assert len(read(path, TaskFormat.dataset, field="body", streaming=streaming, limit=3).samples) == 3


def test_a_dataset_may_hold_chats_or_token_ids(tmp_path: Path) -> None:
    path = local_datasets(tmp_path, {"messages": [CHAT, CHAT], "ids": [[1, 2], [3]]})["saved"]
    chats = read(path, TaskFormat.dataset, field="messages")
    assert [sample.prompt for sample in chats.samples] == [CHAT, CHAT]
    assert chats.chat
    assert [list(s.prompt) for s in read(path, TaskFormat.dataset, field="ids").samples] == [[1, 2], [3]]


def test_a_dataset_that_cannot_be_opened_is_refused_with_the_reason(tmp_path: Path) -> None:
    path = local_datasets(tmp_path, {"text": WORDS})["saved"]
    with pytest.raises(JobError, match="split=test cannot be opened"):
        read(path, TaskFormat.dataset, split="test")
    with pytest.raises(JobError, match=r'data-00000-of-00001.arrow has no column "body"; it has text'):
        read(path, TaskFormat.dataset, field="body")


@pytest.mark.parametrize(
    ("split", "rows"),
    [
        ("train", [0, 1, 2, 3]),
        ("train[:2]", [0, 1]),
        ("train[-1:]", [3]),
        ("train[25%:75%]", [1, 2]),
        ("train[1:2]+train[3:]", [1, 3]),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["one", "many"])
def test_a_saved_dataset_gives_the_rows_of_the_split(
    tmp_path: Path, kind: str, streaming: bool, split: str, rows: list[int]
) -> None:
    made = datasets.Dataset.from_dict({"text": WORDS})
    if kind == "many":
        made = datasets.DatasetDict({"train": made, "test": made.select([2])})
    made.save_to_disk(tmp_path / "saved")
    samples = read(tmp_path / "saved", TaskFormat.dataset, split=split, streaming=streaming).samples
    assert [sample.prompt for sample in samples] == [WORDS[row] for row in rows]


def test_splits_of_a_saved_dataset_can_be_joined_and_missing_ones_are_refused(tmp_path: Path) -> None:
    made = datasets.Dataset.from_dict({"text": WORDS})
    datasets.DatasetDict({"train": made, "test": made.select([2])}).save_to_disk(tmp_path / "saved")
    for split, words in (("test", ["three"]), ("test+train[:1]", ["three", "one"]), ("all", [*WORDS, "three"])):
        samples = read(tmp_path / "saved", TaskFormat.dataset, split=split).samples
        assert [sample.prompt for sample in samples] == words
    datasets.Dataset.from_dict({"text": WORDS}, split=datasets.Split.VALIDATION).save_to_disk(tmp_path / "one")
    assert len(read(tmp_path / "one", TaskFormat.dataset, split="validation[:3]").samples) == 3
    for split in ("test", "train", "validation[", "0"):
        with pytest.raises(JobError, match=f"split={re.escape(split)} cannot be opened"):
            read(tmp_path / "one", TaskFormat.dataset, split=split)
    with pytest.raises(JobError, match=r"tasks\.subset=en: .* was written by save_to_disk"):
        read(tmp_path / "one", TaskFormat.dataset, subset="en")


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_of_a_dataset_lose_their_padding_and_keep_their_tools(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streaming: bool
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    ids = {"input_ids": [[9, 9, 1, 2], [3, 4, 9, 9]], "attention_mask": [[0, 0, 1, 1], [1, 1, 0, 0]]}
    made = datasets.Dataset.from_dict(ids | {"messages": [CHAT, CHAT], "tools": [[{"name": "add"}], None]})
    made.with_format("numpy").save_to_disk(tmp_path / "saved")
    padded = read(tmp_path / "saved", TaskFormat.dataset, field="input_ids", streaming=streaming).samples
    assert [list(sample.prompt) for sample in padded] == [[1, 2], [3, 4]]
    chats = read(tmp_path / "saved", TaskFormat.dataset, field="messages", streaming=streaming).samples
    assert [sample.template_values for sample in chats] == [{"tools": [{"name": "add"}]}, {}]


def test_a_file_that_breaks_off_is_one_line(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": WORDS}).to_json(tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl").write_text('{"text": ')
    with pytest.raises(JobError, match=r"b\.jsonl, line 1 is not JSON"):
        read(tmp_path, TaskFormat.dataset, streaming=True)


def test_a_value_that_is_no_json_is_named(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": "hello", "at": datetime(2026, 1, 1)}]}]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    for streaming in (False, True):
        with pytest.raises(JobError, match="row 0 has a value that JSON cannot hold"):
            read(tmp_path / "saved", TaskFormat.dataset, field="messages", streaming=streaming)


def test_a_mask_beside_an_array_takes_its_padding_away(tmp_path: Path) -> None:
    tokens, mask = np.array([[9, 1, 2], [3, 9, 9]]), np.array([[0, 1, 1], [1, 0, 0]])
    for name in ("tokens", "input_ids"):
        save_file({name: tokens, "attention_mask": mask}, tmp_path / "t.safetensors")
        samples = read(tmp_path / "t.safetensors", TaskFormat.tokens).samples
        assert [list(sample.prompt) for sample in samples] == [[1, 2], [3]]
    save_file({"tokens": tokens, "attention_mask": np.array([[1, 0, 1], [1, 1, 1]])}, tmp_path / "hole.safetensors")
    with pytest.raises(JobError, match="row 0: attention_mask has a hole at token 1"):
        read(tmp_path / "hole.safetensors", TaskFormat.tokens)
    save_file({"tokens": tokens, "attention_mask": mask[:1]}, tmp_path / "short.safetensors")
    with pytest.raises(JobError, match=r"attention_mask is int64 \[1, 3\]; the shape \[2, 3\] is needed"):
        read(tmp_path / "short.safetensors", TaskFormat.tokens)
    save_file({"tokens": tokens, "attention_mask": mask, "lengths": np.array([1, 1])}, tmp_path / "both.safetensors")
    with pytest.raises(JobError, match="has lengths and attention_mask, which may differ"):
        read(tmp_path / "both.safetensors", TaskFormat.tokens)
    np.savez_compressed(tmp_path / "t.npz", tokens=tokens)
    with pytest.raises(JobError, match=r"t\.npz is compressed; save it with numpy\.savez"):
        read(tmp_path / "t.npz", TaskFormat.tokens)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"streaming": True}, "tasks.streaming=true does not go with tasks.format=arc; only with dataset"),
        ({"split": "test[:2]"}, "tasks.split=test[:2] does not go with tasks.format=arc"),
        ({"subset": "en"}, "tasks.subset=en does not go with"),
        ({"field": "messages"}, "tasks.field=messages does not go with tasks.format=arc; only with jsonl and dataset"),
    ],
)
def test_fields_of_other_formats_are_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(JobError, match=re.escape(says)):
        TasksConfig(path="x", format=TaskFormat.arc, **fields)


def test_a_large_file_is_not_held_in_memory(tmp_path: Path) -> None:
    path, size = tmp_path / "large.jsonl", 10_000
    with path.open("w") as file:
        for number in range(size):
            file.write(json.dumps({"text": f"{number} " + "x" * 10_000}) + "\n")
    tracemalloc.start()
    samples = read(path, TaskFormat.jsonl).samples
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(samples) == size
    assert str(samples[size - 1].prompt).startswith(f"{size - 1} ")
    assert peak < path.stat().st_size / 10
