"""Datasets that `save_to_disk` of the Hugging Face `datasets` wrote: Arrow files, and records that list them."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pod_job.config.tasks import TasksConfig
from pod_job.errors import JobError
from pod_job.formats.json_text import parse_json
from pod_job.prompts.sources.file_lists import below
from pod_job.prompts.sources.places import Listed, open_file
from pod_job.prompts.sources.split import SplitPart, chosen_parts
from pod_job.storage.folder import is_name

STATE, SPLITS, INFO = "state.json", "dataset_dict.json", "dataset_info.json"
MOST_BYTES = 64 << 20


def is_saved(base: str, listed: Sequence[Listed]) -> bool:
    """Returns whether the files of a folder are such a dataset."""
    names = {below(entry.url, base) for entry in listed}
    return STATE in names or SPLITS in names


def saved_parts(
    config: TasksConfig, path: str, base: str, listed: Sequence[Listed]
) -> list[tuple[SplitPart, list[Listed]]]:
    """Returns the Arrow files of each part of `tasks.split`.

    A Dataset without a name of its split is the split `train`.

    Raises:
        JobError: a subset, which nothing saved this way has; a split that is not there; damaged records.
    """
    if config.subset is not None:
        raise JobError(f"tasks.subset={config.subset}: {path} was written by save_to_disk; leave out the subset")
    files = {below(entry.url, base): entry for entry in listed}
    try:
        splits = saved_splits(files)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(path, error) from error
    parts = chosen_parts(path, config.split, list(splits))
    if missing := next((name for part in parts for name in splits[part.name] if name not in files), None):
        raise JobError(f"tasks.path={path}: {missing} is missing; copy the dataset again")
    return [(part, [files[name] for name in splits[part.name]]) for part in parts]


def saved_splits(files: Mapping[str, Listed]) -> dict[str, list[str]]:
    """Returns the names of the Arrow files of each split. ValueError and the like where records are damaged."""
    if SPLITS not in files:
        state = read(files[STATE])
        split = re.match(r"\w+", str(state.get("_split") or ""))
        return {split[0] if split else "train": data_files("", state)}
    splits = {}
    for name in read(files[SPLITS])["splits"]:
        folder = f"{word(name)}/"
        splits[str(name)] = data_files(folder, read(files[f"{folder}{STATE}"]))
    return splits


def data_files(folder: str, state: Mapping[str, Any]) -> list[str]:
    return [f"{folder}{word(entry['filename'])}" for entry in state["_data_files"]]


def read(entry: Listed) -> Any:
    return parse_json(open_file(entry.url).read(0, min(entry.state.size, MOST_BYTES)))


def word(name: str) -> str:
    if not is_name(name) or "/" in name:
        raise ValueError(f"{name!a} is not the name of a file in it")
    return name


def damaged(path: str, error: Exception) -> JobError:
    return JobError(f"tasks.path={path}: is not what save_to_disk writes ({error}); save it again")
