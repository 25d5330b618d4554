"""JSON of strangers is decoded within limits, in one place, whichever file it comes in."""

import ast
import json
import math
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sample_runs import finished_run

from pod_job.checkpoints.huggingface import weight_files
from pod_job.checkpoints.orbax import read_converted
from pod_job.config.tasks import TaskFormat, TasksConfig
from pod_job.errors import JobError
from pod_job.formats.json_text import MOST_NESTED, check_depth, parse_json, read_json_file
from pod_job.interop.pickle_metadata import read_pickle_metadata
from pod_job.interop.shard_reader import read_shard_metadata
from pod_job.models.arch import read_arch_file
from pod_job.prompts.tasks import read_tasks
from pod_job.prompts.tokenizer import end_tokens
from pod_job.run_folder import layout
from pod_job.run_folder.identity import read_run
from pod_job.run_folder.metadata import read_any
from pod_job.run_folder.parity import read_all_parity
from pod_job.run_folder.pods import read_pods
from pod_job.run_folder.start import read_start
from pod_job.storage.open import open_folder

ROOT = Path(__file__).parents[2]
DECODERS = {
    "pod_job/formats/json_text.py": "the place itself",
    "pod_job/formats/records.py": "records",
    "pod_job/generation/predictions.py": "its own texts",
    "pod_job/prompts/chat.py": "answers of its own process",
    "pod_job/prompts/template_worker.py": "requests of its own parent",
    "pod_job/prompts/tokenizer_growth.py": "parts as they are, for the library, and what the library made of them",
    "pod_job/checkpoints/content.py": "its own cache",
    "pod_job/storage/gcs_media.py": "answers of Cloud Storage",
}


def test_json_is_decoded_in_one_place() -> None:
    """Whoever decodes JSON by `json` or `msgspec.json` is listed, with the reason why no stranger wrote it."""
    found = set()
    for path in sorted((ROOT / "pod_job").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if name in ("json.loads", "json.load", "msgspec.json.decode"):
                found.add(path.relative_to(ROOT).as_posix())
    assert found == DECODERS.keys()


DEEP = {
    "lists": b"[" * 100_000 + b"]" * 100_000,
    "objects": b'{"a":' * 5000 + b"1" + b"}" * 5000,
    "not deep enough for Python": b"[" * 500 + b"]" * 500,
    "one too many": b"[" * (MOST_NESTED + 1) + b"]" * (MOST_NESTED + 1),
    "among others": b'[{"a": [[]]}, ' * 70 + b"1" + b"]" * 70,
}


@pytest.mark.parametrize("text", DEEP.values(), ids=list(DEEP))
def test_deep_values_are_refused(text: bytes) -> None:
    for same in (text, text.decode()):
        with pytest.raises(ValueError, match="nested deeper than 64 levels"):
            parse_json(same)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b'{"a": 1, "b": {"c": 1, "c": 1}}', "the key 'c' is there twice in one object"),
        (b'{"' + b"a" * 999 + b'": 1, "' + b"a" * 999 + b'": 2}', "is there twice"),
        (b"1" * 5000, "a number of too many digits"),
        (b"[1, 2", "Expecting ',' delimiter"),
        (b'"\xff"', "utf-8"),
        (b"", "Expecting value"),
        (b" " * 2000, "it is larger than 1,024 bytes"),
    ],
)
def test_texts_that_are_no_json_are_refused_in_one_line(text: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as refused:
        parse_json(text, 1024 if reason.endswith("bytes") else 1 << 20)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_are_not_finite_are_taken_unless_json_must_be_strict(constant: str) -> None:
    assert not math.isfinite(parse_json(f"[{constant}]")[0])
    with pytest.raises(ValueError, match=f"^{constant} is not JSON"):
        parse_json(f"[{constant}]", strict=True)


def test_values_within_the_limits_come_back() -> None:
    value: Any = 1
    for _ in range(MOST_NESTED):
        value = [value]
    for sound in (value, {"a": [1, 2.5, None, "x", {"b": [True]}] * 100}, 2**70, "[" * 1000):
        assert parse_json(json.dumps(sound)) == sound
    with pytest.raises(ValueError, match="nested deeper"):
        check_depth([value])


def test_many_equal_keys_are_refused_at_once() -> None:
    names = [f'"{number}": 0' for number in range(100_000)]
    with pytest.raises(ValueError, match="'99999' is there twice"):
        parse_json("{" + ", ".join([*names, names[-1]]) + "}")


def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="not a regular file"):
        read_json_file(tmp_path / "pipe")
    with pytest.raises(FileNotFoundError):
        read_json_file(tmp_path / "missing")


def deep(levels: int = 200) -> str:
    return "[" * levels + "]" * levels


def samples(path: Path, format: TaskFormat, **fields: Any) -> Any:
    return read_tasks(TasksConfig(format=format, path=str(path), **fields), 100)


READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "run.json": (layout.RUN, lambda root: read_run(open_folder(root))),
    "start.json": (layout.START, lambda root: read_start(open_folder(root))),
    "parity": (layout.parity_file("a"), lambda root: read_all_parity(open_folder(root))),
    "pods": (layout.pod_file("1_z_n", "created"), lambda root: read_pods(open_folder(root))),
    "metadata.json": (layout.METADATA, lambda root: read_any(open_folder(root))),
    "pickles": ("metadata.json", lambda root: read_pickle_metadata(root / "metadata.json")),
    "shards": ("metadata.json", read_shard_metadata),
    "config.json": ("config.json", lambda root: read_arch_file(root / "config.json")),
    "generation_config.json": ("generation_config.json", end_tokens),
    "index": ("model.safetensors.index.json", lambda root: weight_files(open_folder(root))),
    "converted.json": ("converted.json", lambda root: read_converted(open_folder(root))),
    "JSON lines": ("tasks.jsonl", lambda root: samples(root / "tasks.jsonl", TaskFormat.jsonl)),
    "ARC": ("tasks.json", lambda root: samples(root / "tasks.json", TaskFormat.arc)),
    "ARC lines": ("arc.jsonl", lambda root: samples(root / "arc.jsonl", TaskFormat.arc)),
    "saved dataset": ("state.json", lambda root: samples(root, TaskFormat.dataset)),
}
WRONG = {
    "deep": lambda text: text.replace("{", '{"deep": ' + deep() + ", ", 1),
    "very deep": lambda text: '{"deep": ' + deep(100_000) + "}",
    "cut": lambda text: text[: len(text) // 2],
    "a list": lambda text: "[]",
    "a number": lambda text: "1",
    "digits": lambda text: '{"n": ' + "1" * 5000 + "}",
    "not UTF-8": lambda text: "\udcff" + text,
}


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_refuses_in_one_line(tmp_path: Path, reader: str) -> None:
    name, read = READERS[reader]
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    before = '{"model_type": "llama", "format": 2}'
    for wrong, change in WRONG.items():
        (tmp_path / name).write_bytes(change(before).encode("utf-8", "surrogateescape"))
        with pytest.raises(JobError) as refused:
            read(tmp_path)
        assert "\n" not in str(refused.value), wrong
        assert len(str(refused.value)) < 1000, wrong


def test_a_deep_configuration_in_run_json_is_refused(tmp_path: Path) -> None:
    """It would be walked through by whoever shows or compares it."""
    finished_run(open_folder(tmp_path), [3])
    path = tmp_path / layout.RUN
    record = json.loads(path.read_text())
    for levels in (50, 200, 900):
        path.write_text(json.dumps(record | {"config": {"a": 0}}).replace('"a": 0', f'"a": {deep(levels)}'))
        if levels < MOST_NESTED:
            assert read_run(open_folder(tmp_path)).config is not None
            continue
        with pytest.raises(JobError, match=r"run\.json: it is nested deeper than 64 levels; the file is damaged"):
            read_run(open_folder(tmp_path))


def test_a_key_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    finished_run(open_folder(tmp_path), [3])
    path = tmp_path / layout.RUN
    path.write_text(path.read_text().replace('"created"', '"config": null, "created"', 1))
    with pytest.raises(JobError, match=r"run\.json: the key 'config' is there twice"):
        read_run(open_folder(tmp_path))


@pytest.mark.parametrize("reader", ["run.json", "start.json", "parity", "pods", "converted.json", "config.json"])
def test_a_file_of_gigabytes_is_not_read(tmp_path: Path, reader: str) -> None:
    name, read = READERS[reader]
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    with (tmp_path / name).open("wb") as file:
        file.truncate(1 << 33)
    tracemalloc.start()
    with pytest.raises(JobError, match="larger than"):
        read(tmp_path)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 80 << 20
