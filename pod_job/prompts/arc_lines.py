"""ARC tasks as JSON lines, one task a line: `{"task_id": ..., "train": [...], "test": [...]}`.

Only the place of each line is held: a file of 200,000 tasks is a few gigabytes as Python objects.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, overload

import numpy as np

from pod_job.errors import JobError
from pod_job.formats.json_text import parse_json
from pod_job.prompts.sources.sample import BrokenTask, Reason

SUFFIXES = (".jsonl", ".ndjson")
PARSED = 64
"""Tasks that are held parsed: each is asked for a few times in a row."""


def is_task_lines(path: Path) -> bool:
    """Returns whether the file has a JSON object a line: by its suffix, or by two lines of which the first is one."""
    if path.suffix in SUFFIXES:
        return True
    try:
        with path.open("rb") as file:
            lines = (line for line in file if line.strip())
            first, second = next(lines, b""), next(lines, b"")
        return bool(second) and isinstance(parse_json(first), dict)
    except (OSError, ValueError):
        return False


class TaskLines(Mapping[str, Any]):
    """Tasks by id, in the order of the lines; one that cannot be read is the BrokenTask that says why."""

    def __init__(self, path: Path, source: str) -> None:
        """`source` is the place that errors name. JobError where the file cannot be opened."""
        self.path, self.source = path, source
        try:
            self.data = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.zeros(0, np.uint8)
        except OSError as error:
            raise JobError(f"tasks.path={source} cannot be read ({error.strerror}); give a .jsonl file") from error
        self.places: dict[str, tuple[int, int, int]] = {}
        """Number, start and length of the line of each task."""
        self.repeated: dict[str, int] = {}
        """Number of the line that has the same task_id earlier."""
        self.task = lru_cache(maxsize=PARSED)(self._task)
        self._find_lines()

    def __getitem__(self, task_id: str) -> Any:
        return self.task(task_id)

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)

    def _find_lines(self) -> None:
        start = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    task_id = id_of(line, number)
                    if task_id in self.places:
                        earlier, task_id = self.places[task_id][0], f"{task_id} of line {number}"
                        self.repeated[task_id] = earlier
                    self.places[task_id] = number, start, len(line)
                start += len(line)

    def _task(self, task_id: str) -> Any:
        number, start, length = self.places[task_id]
        where = f"tasks.path={self.source}, line {number}"
        if (earlier := self.repeated.get(task_id)) is not None:
            return BrokenTask(f"{where} has the task_id of line {earlier}; name each task once", Reason.repeated)
        try:
            return parse_json(self.data[start : start + length].tobytes())
        except ValueError as error:
            return BrokenTask(f"{where} is not JSON ({error})")


def id_of(line: bytes, number: int) -> str:
    """Returns the line's `task_id`, or its `id`; where it has neither, its number."""
    try:
        task = parse_json(line)
    except ValueError:
        task = None
    names = [task[key] for key in ("task_id", "id") if isinstance(task, dict) and isinstance(task.get(key), str | int)]
    return str(names[0]) if names else f"line_{number}"


class JoinedTasks(Mapping[str, Any]):
    """Tasks of several files by id, in the order of the files; `sources` has the file of each."""

    def __init__(self, files: Mapping[str, Mapping[str, Any]]) -> None:
        """`files`: their tasks by place. JobError where two files have a task of one name."""
        self.files, self.sources = files, dict[str, str]()
        for source, tasks in files.items():
            for task_id in tasks:
                if task_id in self.sources:
                    raise JobError(f"tasks.path={source}: another file has task {task_id!r} too; rename or remove one")
                self.sources[task_id] = source

    def __getitem__(self, task_id: str) -> Any:
        return self.files[self.sources[task_id]][task_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self.sources)

    def __len__(self) -> int:
        return len(self.sources)


class NumberedTasks(Sequence[tuple[str, Any]]):
    """Tasks as (id, task), by number."""

    def __init__(self, tasks: Mapping[str, Any]) -> None:
        self.tasks, self.ids = tasks, list(tasks)

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, number: int) -> tuple[str, Any]: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[tuple[str, Any]]: ...
    def __getitem__(self, number: int | slice) -> tuple[str, Any] | Sequence[tuple[str, Any]]:
        if isinstance(number, slice):
            return [self[i] for i in range(len(self))[number]]
        return self.ids[number], self.tasks[self.ids[number]]
