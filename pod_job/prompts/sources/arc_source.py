"""ARC tasks as samples: `arc.predictions` prompts per test input, each another form of its task."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from pod_job.config.tasks import TasksConfig
from pod_job.prompts.arc import check_task, read_arc
from pod_job.prompts.arc_lines import NumberedTasks
from pod_job.prompts.arc_prompts import render
from pod_job.prompts.augment import augmentation
from pod_job.prompts.sources.documents import Documents, Read
from pod_job.prompts.sources.file_lists import below, list_place
from pod_job.prompts.sources.index import FORMAT, TaskIndex
from pod_job.prompts.sources.listing import Listing
from pod_job.prompts.sources.places import open_file
from pod_job.prompts.sources.sample import BrokenTask, Sample, checked


class ArcDocuments(Documents):
    """Samples of ARC tasks, task by task; `sample_idx` is test input x predictions + prediction."""

    def __init__(self, listing: Listing, config: TasksConfig) -> None:
        """Raises JobError where there is no such file, or it is not a JSON object."""
        super().__init__(TaskIndex(FORMAT, listing.kind, "", listing.files), config)
        self.path = config.places[0]
        with local_path(self.path) as path:
            self.tasks = NumberedTasks(read_arc(path))
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
            where = f"tasks.path={self.path}: task {task_id}"
            try:
                check_task(where, task)
                checked(where, Sample(task_id, 0, ""))
                self.problems[number] = None
            except BrokenTask as broken:
                self.problems[number] = broken
        return self.problems[number]


@contextmanager
def local_path(path: str) -> Iterator[Path]:
    """Yields the path of ARC tasks on this machine, copied for as long where they are not."""
    if "://" not in path:
        yield Path(path).expanduser()
        return
    base, listed = list_place(path)
    with tempfile.TemporaryDirectory() as scratch:
        for entry in listed:
            copy = Path(scratch) / below(entry.url, base)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(open_file(entry.url).read(0, entry.state.size))
        yield Path(scratch) / below(listed[0].url, base) if len(listed) == 1 else Path(scratch)
