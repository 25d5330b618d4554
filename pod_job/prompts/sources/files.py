"""The files that a task source reads, for whoever sends them to other machines."""

import json
from pathlib import Path

from pod_job.config.tasks import TaskFormat, TasksConfig
from pod_job.errors import JobError
from pod_job.storage.folder import is_name

DATA = (".arrow", ".csv", ".json", ".jsonl", ".parquet", ".txt", ".zst", ".gz")
"""Endings of the files in a folder that `datasets.load_dataset` reads."""


def source_files(config: TasksConfig) -> list[Path]:
    """Returns the files that `tasks.path` stands for, as `read_tasks` opens them; none for a name on the hub."""
    path = Path(config.path)
    if not path.is_dir():
        return [path] if path.is_file() else []
    if config.format is TaskFormat.arc:
        return sorted(path.glob("*.json"))
    if config.format is TaskFormat.text:
        return sorted(path.rglob("*.txt"))
    if config.format is TaskFormat.dataset:
        return saved_files(path) or sorted(file for file in path.rglob("*") if file.suffix in DATA)
    return []


def saved_files(path: Path) -> list[Path]:
    """Returns the files of a dataset that `save_to_disk` wrote; none where it was not. JobError where it is damaged."""
    try:
        if (path / "dataset_dict.json").is_file():
            splits = json.loads((path / "dataset_dict.json").read_bytes())["splits"]
            parts = [file for split in splits for file in saved_files(path / _word(split))]
            return [path / "dataset_dict.json", *parts]
        if not (path / "state.json").is_file():
            return []
        state = json.loads((path / "state.json").read_bytes())
        data = [path / _word(entry["filename"]) for entry in state["_data_files"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise JobError(f"tasks.path={path}: is not what save_to_disk writes ({error}); save it again") from error
    return [path / "state.json", *(file for file in [path / "dataset_info.json"] if file.is_file()), *data]


def _word(name: str) -> str:
    if not is_name(name) or "/" in name:
        raise ValueError(f"{name!a} is not the name of a file in it")
    return name
