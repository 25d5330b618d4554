"""ARC tasks as samples: `arc.predictions` prompts per test input, each another form of its task."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from pod_job.config.tasks import TasksConfig
from pod_job.prompts.arc import check_task, read_arc
from pod_job.prompts.arc_lines import JoinedTasks, NumberedTasks
from pod_job.prompts.arc_prompts import render
from pod_job.prompts.augment import augmentation
from pod_job.prompts.sources.compressed import codec_of, pieces_of
from pod_job.prompts.sources.documents import Documents, Read
from pod_job.prompts.sources.file_lists import pattern_of
from pod_job.prompts.sources.index import FORMAT, FileEntry, TaskIndex
from pod_job.prompts.sources.listing import Listing
from pod_job.prompts.sources.places import open_file
from pod_job.prompts.sources.sample import BrokenTask, Sample, checked
from pod_job.storage.local_files import expanded


class ArcDocuments(Documents):
    """Samples of ARC tasks, task by task; `sample_idx` is test input x predictions + prediction."""

    def __init__(self, listing: Listing, config: TasksConfig) -> None:
        """Raises JobError where there is no such file, or it is not a JSON object."""
        super().__init__(TaskIndex(FORMAT, listing.kind, "", listing.files), config)
        self.by_id = read_arc_files(listing, config)
        self.tasks = NumberedTasks(self.by_id)
        self.problems: dict[int, BrokenTask | None] = {}
        self.keys = np.array(list(self._keys()), np.int64).reshape(-1, 2)
        self.starts = np.array([0, len(self.keys)], np.int64)

    @property
    def sequential(self) -> bool:
        return False

    def load(self, rows: Int64[np.ndarray, " n"]) -> list[Read]:
        for file in range(min(len(self.index.files), 64)):
            self.check(file)
        return [self._load(int(row)) for row in rows]

    def _load(self, row: int) -> Read:
        number, sample_idx = self.keys[row].tolist()
        if broken := self._problem(number):
            return broken
        config = self.config.arc
        task_id, task = self.tasks[number]
        test, attempt = divmod(sample_idx, config.predictions)
        form = augmentation(config, task_id, attempt)
        return Sample(task_id, sample_idx, render(form.apply_to_task(task), test, config.prompt))

    def _keys(self) -> Iterator[tuple[int, int]]:
        for number, (_, task) in enumerate(self.tasks):
            samples = 1 if self._problem(number) else len(task["test"]) * self.config.arc.predictions
            yield from ((number, sample_idx) for sample_idx in range(samples))

    def _problem(self, number: int) -> BrokenTask | None:
        if number not in self.problems:
            task_id, task = self.tasks[number]
            where = f"tasks.path={self.by_id.sources[task_id]}: task {task_id}"
            try:
                check_task(where, task)
                checked(where, Sample(task_id, 0, ""))
                self.problems[number] = None
            except BrokenTask as broken:
                self.problems[number] = broken
        return self.problems[number]


def read_arc_files(listing: Listing, config: TasksConfig) -> JoinedTasks:
    """Returns the tasks of a source, unchecked. JobError where a file cannot be read, or two have one task."""
    files, tasks = arc_files(listing, config), {}
    for entry in files:
        with on_this_machine(entry) as path:
            tasks[entry.url] = read_arc(path, entry.url, of_many=len(files) > 1)
    return JoinedTasks(tasks)


def arc_files(listing: Listing, config: TasksConfig) -> list[FileEntry]:
    """Returns the files that tasks are read from: of a folder those that lie in it directly, where there are any."""
    files = listing.files
    if len(config.paths) > 1 or pattern_of(config.places[0]):
        return files
    return [entry for entry in files if "/" not in entry.name] or files


@contextmanager
def on_this_machine(entry: FileEntry) -> Iterator[Path]:
    """Yields the path of a file, or for as long of a copy, where it is elsewhere or compressed."""
    if "://" not in entry.url and codec_of(entry.url) is None:
        yield expanded(entry.url)
        return
    name = entry.url.rpartition("/")[2]
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / (name if codec_of(name) is None else name.rpartition(".")[0])
        with copy.open("wb") as file:
            for piece in pieces_of(open_file(entry.url), entry.size):
                file.write(piece)
        yield copy
