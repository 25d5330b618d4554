"""The files that a task source reads, for whoever sends them to other machines."""

import os
from pathlib import Path

from pod_job.config.tasks import TaskFormat, TasksConfig
from pod_job.prompts.sources.file_lists import list_place
from pod_job.prompts.sources.hub_names import is_dataset_name
from pod_job.prompts.sources.listing import list_source
from pod_job.prompts.sources.saved import INFO, SPLITS, STATE
from pod_job.storage.local_files import expanded


def source_files(config: TasksConfig) -> list[Path]:
    """Returns the files of this machine that `tasks.path` stands for, with the records of saved datasets.

    None for what lies elsewhere.
    """
    hub = config.format in (TaskFormat.auto, TaskFormat.dataset)
    paths = [
        path for path in config.paths if "://" not in path and not (hub and is_dataset_name(path) and not here(path))
    ]
    if not paths or not all(here(path) or "*" in path or "?" in path for path in paths):
        return []
    local = TasksConfig(
        **{**vars(config), "uploaded": None, "path": paths, "split": "all" if saved(paths) else config.split}
    )
    records = [Path(entry.url) for path in paths for entry in list_place(path)[1] if is_record(entry.url)]
    return sorted({*records, *(Path(entry.url) for entry in list_source(local).files)})


def here(path: str) -> bool:
    return os.path.exists(expanded(path))


def saved(paths: list[str]) -> bool:
    return any(os.path.isfile(expanded(path) / name) for path in paths for name in (STATE, SPLITS))


def is_record(url: str) -> bool:
    """Returns whether a file is a record of a dataset that `save_to_disk` wrote, beside its data."""
    path = Path(url)
    beside_state = path.name in (STATE, INFO) and (path.parent / STATE).is_file()
    return beside_state or (path.name == SPLITS and path.is_file())
