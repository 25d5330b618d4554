"""The configuration of a run's first start: in run.json what everybody may see, all of it in launcher/.

A run folder is published without launcher/: the cloud project, the flags of ssh and the folders of a workstation are
nobody else's business, and only the launcher and who started the run need them.
"""

from pathlib import PurePosixPath

from pod_job.config.schema import ConfigValues
from pod_job.formats.records import Record, encode, read_file
from pod_job.run_folder.layout import START
from pod_job.storage.folder import Folder, NameTaken

PRIVATE = {"cloud": None, "storage": ("run_dir", "compile_cache"), "tasks": ("uploaded",), "pod": ("hosts_file",)}
"""Sections of the configuration that run.json does not have: fields of them, or None for all."""
PATHS = ("model", "tasks")
"""Sections whose `path` is in run.json only where it does not name a folder of one machine."""


class StartRecord(Record, frozen=True):
    """launcher/start.json; `config` is the configuration as JSON values, as `config.load.from_json` reads it."""

    config: ConfigValues


def record_start(folder: Folder, config: ConfigValues) -> None:
    """Records the configuration; that of an earlier start stays."""
    try:
        folder.create(START, [encode(StartRecord(config), indent=1)])
    except NameTaken:
        return


def read_start(folder: Folder) -> ConfigValues | None:
    """Returns the whole configuration; None where it is not in the folder: published, or of a version before 0.2.0."""
    try:
        return read_file(folder, START, StartRecord).config
    except FileNotFoundError:
        return None


def shareable(config: ConfigValues) -> ConfigValues:
    """Returns the part of the configuration that run.json has."""
    shared = dict(config)
    for section, fields in PRIVATE.items():
        if fields is None:
            shared.pop(section, None)
        elif isinstance(content := shared.get(section), dict):
            shared[section] = {key: value for key, value in content.items() if key not in fields}
    for section in PATHS:
        content = shared.get(section)
        if isinstance(content, dict) and any(map(is_of_one_machine, texts(content.get("path")))):
            shared[section] = {key: value for key, value in content.items() if key != "path"}
    train = shared.get("train")
    if isinstance(train, dict) and train.get("run") is not None:  # without it the configuration would not be complete
        shared["train"] = {**train, "run": shared_name(train["run"])}
    return shared


def texts(value: object) -> list[str]:
    """Returns one value, or those of a list, as texts."""
    return [str(item) for item in (value if isinstance(value, list) else [value])]


def is_of_one_machine(path: str) -> bool:
    """Returns True for a path that says where something lies on one machine: not a URL, a hub name or below here."""
    return "://" not in path and (path.startswith(("/", "~")) or ".." in PurePosixPath(path).parts)


def shared_name(path: object) -> str:
    """Returns a place as others may see it: of a folder or file of one machine, its last name alone."""
    text = str(path)
    return PurePosixPath(text).name if is_of_one_machine(text) else text
