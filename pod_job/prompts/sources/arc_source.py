"""ARC tasks as samples: `arc.predictions` prompts per test input, each another form of its task."""

from collections.abc import Iterator
from pathlib import Path

from pod_job.config.tasks import ArcConfig
from pod_job.prompts.arc import check_task, read_arc
from pod_job.prompts.arc_lines import NumberedTasks
from pod_job.prompts.arc_prompts import render
from pod_job.prompts.augment import augmentation
from pod_job.prompts.sources.sample import BrokenTask, Key, Sample, Source, checked
from pod_job.prompts.sources.watched import WatchedFiles, files_below


def arc_source(path: Path, config: ArcConfig) -> Source:
    """Opens ARC tasks: samples task by task; `sample_idx` is test input x predictions + prediction.

    Raises:
        JobError: no such file, or it is not a JSON object.
    """
    files = WatchedFiles(files_below(path))  # before anything is read
    tasks = NumberedTasks(read_arc(path))
    problems: dict[int, BrokenTask | None] = {}

    def problem(number: int) -> BrokenTask | None:
        if number not in problems:
            task_id, task = tasks[number]
            where = f"tasks.path={path}: task {task_id}"
            try:
                check_task(where, task)
                checked(where, Sample(task_id, 0, ""))
                problems[number] = None
            except BrokenTask as broken:
                problems[number] = broken
        return problems[number]

    def keys() -> Iterator[Key]:
        for number, (_, task) in enumerate(tasks):
            samples = 1 if problem(number) else len(task["test"]) * config.predictions
            yield from ((number, sample_idx) for sample_idx in range(samples))

    def load(key: Key) -> Sample:
        number, sample_idx = key
        if broken := problem(number):
            raise broken
        task_id, task = tasks[number]
        test, attempt = divmod(sample_idx, config.predictions)
        form = augmentation(config, task_id, attempt)
        return Sample(task_id, sample_idx, render(form.apply_to_task(task), test, config.prompt))

    return Source(keys, load, files)
