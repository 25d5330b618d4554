"""Task sources: samples in a fixed order, and a fingerprint of the data they come from."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pod_job.arc import prompts, read_arc
from pod_job.config import TaskFormat, TasksConfig
from pod_job.errors import JobError


@dataclass(frozen=True)
class Sample:
    """One prompt. `sample_idx` counts the prompts of one task."""

    task_id: str
    sample_idx: int
    text: str


@dataclass(frozen=True)
class Tasks:
    """All samples of a run in their order; `fingerprint` changes when any of them does."""

    samples: Sequence[Sample]
    fingerprint: str


def read_tasks(config: TasksConfig) -> Tasks:
    """Raises JobError for a source that is missing, empty or malformed, naming the file and the task or line."""
    samples = READERS[config.format](Path(config.path))[: config.limit]
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(json.dumps([sample.task_id, sample.sample_idx, sample.text]).encode())
    return Tasks(samples, digest.hexdigest())


def arc_samples(path: Path) -> list[Sample]:
    return [
        Sample(task_id, sample_idx, text)
        for task_id, task in read_arc(path).items()
        for sample_idx, text in enumerate(prompts(task))
    ]


def jsonl_samples(path: Path) -> list[Sample]:
    """One JSON object a line: `text`, and `task_id` and `sample_idx` where wanted (else `line_N` and 0)."""
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise JobError(f"tasks.path={path} cannot be read ({error.strerror}); give a .jsonl file") from error
    samples = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise JobError(f"tasks.path={path}, line {number} is not JSON ({error})") from error
        if not isinstance(record, dict) or not isinstance(record.get("text"), str) or not record["text"]:
            raise JobError(f'tasks.path={path}, line {number} must be an object with a non-empty "text"')
        samples.append(
            Sample(str(record.get("task_id", f"line_{number}")), int(record.get("sample_idx", 0)), record["text"])
        )
    if not samples:
        raise JobError(f"tasks.path={path} is empty; there is nothing to extract")
    return samples


READERS = {TaskFormat.arc: arc_samples, TaskFormat.jsonl: jsonl_samples}
