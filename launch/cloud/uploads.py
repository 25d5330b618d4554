"""Task files and models that only this machine has: put into the bucket once for each content, for hosts to read there.

The folder of an upload is named by its content, so that another run with the same files finds them there and sends
nothing. Small task files travel with the code instead, see `bundle`.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from launch.cloud.bundle import why_not_to_send
from launch.cloud.checks import is_path, leaves_folder, shared, uploads_folder
from launch.cloud.sending import IN_FLIGHT, LocalFile, Show, local_file, send_files
from launch.view.progress import Screen
from launch.view.timed_log import Log
from pod_job.checkpoints.checkpoint import read_checkpoint
from pod_job.checkpoints.huggingface import INDEX, TensorFiles, map_ahead, weight_files
from pod_job.checkpoints.locate import local_small_files
from pod_job.checkpoints.orbax import MANIFEST
from pod_job.config.load import quoted
from pod_job.config.schema import JobConfig, PodKind
from pod_job.config.tasks import TasksConfig
from pod_job.errors import JobError
from pod_job.prompts.sources.file_lists import WILDCARDS, base_of, pattern_of
from pod_job.prompts.sources.files import source_files
from pod_job.terminal import SafeConsole
from pod_job.units import GB, MB

if TYPE_CHECKING:
    from pod_job.storage.gcs import BucketFolder

MOST_SENT_ALONG = 32 << 20
"""Bytes of task files that travel with the code."""
ASSUMED_BYTES_S = 50e6
"""Speed of an upload where none was measured."""


@dataclass(frozen=True)
class Source:
    """Files of this machine that hosts do not see.

    Attributes:
        field: the setting that names them, `tasks.path` or `model.path`.
        path: its value.
        files: the files by their names in the folder of the upload.
        inside: what is read in that folder: "" for all of it, else a name or a pattern.
    """

    field: str
    path: str
    files: dict[str, Path]
    inside: str

    @property
    def size(self) -> int:
        return sum(path.stat().st_size for path in self.files.values())


@dataclass(frozen=True)
class Placed:
    """A job whose files hosts can read: its configuration, and the overrides that say so to them."""

    config: JobConfig
    overrides: list[str]


def to_upload(config: JobConfig) -> list[Source]:
    """Returns what hosts could not read where it lies; nothing for a job of this machine, or without a bucket.

    Raises:
        JobError: a file among it that nobody would want to send.
    """
    if config.pod.kind is not PodKind.tpu or uploads_folder(config) is None:
        return []
    sources = [task_source(config.tasks, path) for path in tasks_to_upload(config)]
    model = config.model.path
    if is_path(model) and not shared(model, config) and Path(model).expanduser().is_dir():
        sources.append(model_source(Path(model).expanduser(), model))
    return [source for source in sources if source.files]


def tasks_to_upload(config: JobConfig) -> list[str]:
    """Returns the paths of task files that are uploaded: those outside of the working directory, or all large ones."""
    tasks = config.tasks
    local = [path for path, place in zip(tasks.paths, tasks.places, strict=True) if path == place and "://" not in path]
    outside = [path for path in local if leaves_folder(path) and not shared(path, config)]
    inside = [path for path in local if not leaves_folder(path)]
    files = [file for path in inside for file in source_files(one_path(tasks, path))]
    return outside + inside if sum(file.stat().st_size for file in files) > MOST_SENT_ALONG else outside


def sent_along(config: JobConfig) -> TasksConfig:
    """Returns the tasks, of which those that are uploaded do not travel with the code."""
    if config.pod.kind is not PodKind.tpu or (url := uploads_folder(config)) is None:
        return config.tasks
    uploaded = tasks_to_upload(config)
    places = [url if path in uploaded else None for path in config.tasks.paths]
    return dataclasses.replace(config.tasks, uploaded=places) if uploaded else config.tasks


def one_path(tasks: TasksConfig, path: str) -> TasksConfig:
    return dataclasses.replace(tasks, path=path, uploaded=None)


def task_source(tasks: TasksConfig, path: str) -> Source:
    """Returns the files that the job reads of one path."""
    top = Path(base_of(path)).expanduser()
    files = {}
    for file in source_files(one_path(tasks, path)):
        inside = file.expanduser().relative_to(top) if file.expanduser() != top else Path(file.name)
        if reason := why_not_to_send(inside, file, top):
            raise JobError(f"tasks.path={path}: {file} {reason}; put the task files alone into a folder of their own")
        files[inside.as_posix()] = file.expanduser()
    if pattern_of(path):
        return Source("tasks.path", path, files, path[len(base_of(path)) :].lstrip("/"))
    one = top.is_file() and not WILDCARDS.search(top.name)
    return Source("tasks.path", path, files, top.name if one else "")


def model_source(directory: Path, path: str) -> Source:
    """Returns the files of a model that hosts read: its configuration, its tokenizer and its weights.

    They are in a folder with the model's name, which provenance records.
    """
    checkpoint = read_checkpoint(directory)
    if isinstance(checkpoint, TensorFiles):
        index = [INDEX] if (directory / INDEX).is_file() else []
        weights = [*weight_files(checkpoint.folder), *index]
    else:
        below = directory / checkpoint.manifest.path
        inside = [file.relative_to(directory).as_posix() for file in sorted(below.rglob("*")) if file.is_file()]
        weights = [*inside, MANIFEST]
    name = directory.resolve().name
    names = dict.fromkeys([*local_small_files(directory), *weights])
    return Source("model.path", path, {f"{name}/{file}": directory / file for file in names}, name)


def with_uploads(config: JobConfig, overrides: Sequence[str], log: Log) -> Placed:
    """Uploads what hosts cannot read where it lies, and returns the job as hosts get it.

    Raises:
        JobError: a file was changed meanwhile or nobody would want to send it, or the bucket cannot be written to.
    """
    sources, url = to_upload(config), uploads_folder(config)
    if not sources or url is None:
        return Placed(config, list(overrides))
    # Imported here, as google.cloud takes a second to import.
    from pod_job.storage.gcs import BucketFolder

    folder = BucketFolder(url, "cloud.uploads")
    log(f"{upload_line(sources, config)}; what is there already is left")
    with Screen(SafeConsole(stderr=True)) as screen:
        places = {(source.field, source.path): place_of(folder, source, screen.show, log) for source in sources}
    model = places.get(("model.path", config.model.path), config.model.path)
    uploaded = [places.get(("tasks.path", path)) for path in config.tasks.paths]
    changes = [f"model.path={quoted(model)}"] if model != config.model.path else []
    if any(uploaded):
        changes.append(f"tasks.uploaded=[{','.join('null' if at is None else quoted(at) for at in uploaded)}]")
    tasks = dataclasses.replace(config.tasks, uploaded=uploaded if any(uploaded) else None)
    placed = dataclasses.replace(config, tasks=tasks, model=dataclasses.replace(config.model, path=model))
    return Placed(placed, [*overrides, *changes])


def place_of(folder: "BucketFolder", source: Source, show: Show, log: Log) -> str:
    """Uploads a source, and returns the URL that hosts read it at."""
    files = list(
        map_ahead(lambda item: local_file(source.field, item[1], item[0]), sorted(source.files.items()), IN_FLIGHT)
    )
    place = digest(files)
    sent = send_files(folder, place, files, show)
    where = f"{folder.url}/{place}"
    log(
        f"{source.field}={source.path}: {sent / GB:.2f} GB uploaded to {where}"
        if sent
        else f"{source.path} is in {where}"
    )
    return f"{where}/{source.inside}".rstrip("/")


def digest(files: Sequence[LocalFile]) -> str:
    """Returns a name for the names, sizes and checksums of files."""
    listed = sorted([file.name, file.stored.size, file.stored.crc32c] for file in files)
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()[:32]


def upload_line(sources: Sequence[Source], config: JobConfig) -> str:
    """Returns what is uploaded where and about how long it takes, in one line for people."""
    size = sum(source.size for source in sources)
    files = sum(len(source.files) for source in sources)
    names = " and ".join(source.path for source in sources)
    minutes = size / ASSUMED_BYTES_S / 60
    time = f"{minutes:,.0f} min" if minutes >= 1 else f"{60 * minutes:,.0f} s"
    return (
        f"upload of {names} to {uploads_folder(config)}: {files:,} files, {size / GB:,.2f} GB, about {time} at "
        f"{ASSUMED_BYTES_S / MB:.0f} MB/s"
    )
