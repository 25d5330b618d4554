"""A source that changes after it was read first is noticed when a sample is loaded, and named; whatever its format."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from safetensors.numpy import save_file

from pod_job.config.tasks import TaskFormat, TasksConfig
from pod_job.errors import JobError
from pod_job.prompts.sources.file_lists import list_local
from pod_job.prompts.sources.places import LocalFile
from pod_job.prompts.tasks import read_tasks

GRID = [[1, 2], [3, 4]]


def arc_task(color: int) -> dict[str, Any]:
    return {"train": [{"input": GRID, "output": [[color]]}], "test": [{"input": GRID}]}


def write_lines(path: Path, texts: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def write_text(path: Path, texts: list[str]) -> None:
    path.write_text(texts[0])


def write_parquet(path: Path, texts: list[str]) -> None:
    datasets.Dataset.from_dict({"text": texts}).to_parquet(path)


def write_tokens(path: Path, texts: list[str]) -> None:
    tokens = np.array([[ord(text[0])] for text in texts])
    np.save(path, tokens) if path.suffix == ".npy" else save_file({"tokens": tokens}, path)


def write_arc(path: Path, texts: list[str]) -> None:
    path.write_text(json.dumps({f"task_{i}": arc_task(ord(text[0]) % 10) for i, text in enumerate(texts)}))


def write_arrow(path: Path, texts: list[str]) -> None:
    datasets.Dataset.from_dict({"text": texts}).save_to_disk(path.parent)
    assert path.is_file()


SOURCES: dict[str, tuple[TaskFormat, str, str, Callable[[Path, list[str]], None]]] = {
    "jsonl": (TaskFormat.jsonl, "t.jsonl", "t.jsonl", write_lines),
    "npy": (TaskFormat.tokens, "t.npy", "t.npy", write_tokens),
    "safetensors": (TaskFormat.tokens, "t.safetensors", "t.safetensors", write_tokens),
    "arc file": (TaskFormat.arc, "arc.json", "arc.json", write_arc),
    "arc folder": (TaskFormat.arc, "arc", "arc/a.json", write_arc),
    "text": (TaskFormat.text, "texts", "texts/a.txt", write_text),
    "parquet": (TaskFormat.dataset, "pq", "pq/t.parquet", write_parquet),
    "arrow": (TaskFormat.dataset, "saved", "saved/data-00000-of-00001.arrow", write_arrow),
}


def overwritten(path: Path, write: Callable[[Path, list[str]], None]) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-20] + bytes(byte ^ 1 for byte in content[-20:]))


def replaced(path: Path, write: Callable[[Path, list[str]], None]) -> None:
    other = path.parent / "other" / path.name
    other.parent.mkdir()
    write(other, ["x", "y"])
    os.replace(other, path)


def cut(path: Path, write: Callable[[Path, list[str]], None]) -> None:
    os.truncate(path, path.stat().st_size // 2)


def removed(path: Path, write: Callable[[Path, list[str]], None]) -> None:
    path.unlink()


@pytest.mark.parametrize("change", [overwritten, replaced, cut, removed])
@pytest.mark.parametrize("kind", SOURCES)
def test_it_is_noticed_and_named(
    tmp_path: Path, kind: str, change: Callable[[Path, Callable[[Path, list[str]], None]], None], monkeypatch: Any
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    format, name, file, write = SOURCES[kind]
    (tmp_path / file).parent.mkdir(exist_ok=True)
    write(tmp_path / file, ["one", "two"])
    samples = read_tasks(TasksConfig(format=format, path=str(tmp_path / name))).samples
    first = samples[0]
    assert samples[0] == first
    change(tmp_path / file, write)
    for at in range(len(samples)):
        with pytest.raises(JobError, match="was changed after this start had read it") as refused:
            samples[at]
        assert Path(file).stem in str(refused.value)
        assert "\n" not in str(refused.value)


def test_a_change_that_keeps_size_and_time_is_noticed_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    write_lines(path, ["one", "two"])
    samples = read_tasks(TasksConfig(format=TaskFormat.jsonl, path=str(path))).samples
    status = path.stat()
    with path.open("r+b") as file:
        file.write(path.read_bytes().replace(b"two", b"six"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    samples.documents.forget()  # a block that is in memory is as it was
    assert samples[0].prompt == "one"
    with pytest.raises(JobError, match="line_2, sample 0 was changed"):
        samples[1]


def test_a_change_while_the_source_is_read_first_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    write_lines(path, ["one", "two"])

    def edit(sample: Any) -> int:
        write_lines(path, ["one", "two", "three"])
        return 1

    with pytest.raises(JobError, match=r"t\.jsonl was changed"):
        read_tasks(TasksConfig(format=TaskFormat.jsonl, path=str(path), max_tokens=9), count_tokens=edit)


def test_a_write_after_the_listing_is_noticed_though_it_follows_at_once(tmp_path: Path) -> None:
    """Within one tick of the clock two writes have one time: of files that are that young, the listing waits."""
    path, times = tmp_path / "t.jsonl", set()
    for number in range(20):
        write_lines(path, [str(number % 10)])
        (listed,) = list_local(path, str(path))[:1]
        write_lines(path, [str(number % 7)])
        times.add(LocalFile(str(path)).state() == listed.state)
    assert times == {False}
