"""JSON lines: one object per line; only the offset of each line is held."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pod_job.errors import JobError
from pod_job.prompts.sources.record import read_record
from pod_job.prompts.sources.sample import BrokenTask, Key, Sample, Source
from pod_job.prompts.sources.watched import WatchedFiles


def jsonl_source(path: Path, field: str) -> Source:
    """Opens a file of JSON lines: `field` (text, messages or token ids) and what `read_record` reads.

    A line without a `task_id` is task `line_N`.

    Raises:
        JobError: the file cannot be opened.
    """
    files = WatchedFiles([path])  # before anything is read
    try:
        data = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.zeros(0, np.uint8)
    except OSError as error:
        raise JobError(f"tasks.path={path} cannot be read ({error.strerror}); give a .jsonl file") from error

    def keys() -> Iterator[Key]:
        offset = 0
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, offset, len(line)
                offset += len(line)

    def load(key: Key) -> Sample:
        number, offset, size = key
        where = f"tasks.path={path}, line {number}"
        try:
            record = json.loads(data[offset : offset + size].tobytes())
        except (ValueError, RecursionError) as error:
            raise BrokenTask(f"{where} is not JSON ({error})") from error
        return read_record(where, record, field, f"line_{number}")

    return Source(keys, load, files)
