"""Hugging Face `datasets`, of the hub or of a local folder; the package is the optional extra `datasets` of ours.

A map-style dataset stays in its memory-mapped Arrow files. A streamed one is written to a temporary file as far as it
is read, so that any sample can be loaded again.
"""

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pod_job.errors import JobError
from pod_job.prompts.sources.sample import Key, Sample, Source, read_record


def dataset_source(path: str, subset: str | None, split: str, streaming: bool, field: str) -> Source:
    """Opens a dataset: samples from the column `field` (text, messages or token ids) of one split, in its order.

    Raises:
        JobError: `datasets` is not installed, or the dataset, its subset or its split cannot be opened.
    """
    dataset = open_dataset(path, subset, split, streaming)
    return streamed(path, dataset, field) if streaming else mapped(path, dataset, field)


def open_dataset(path: str, subset: str | None, split: str, streaming: bool) -> Any:
    try:
        import datasets
        from datasets.exceptions import DatasetsError
    except ImportError:
        raise JobError("tasks.format=dataset needs the package datasets; pip install datasets") from None
    try:
        if (Path(path) / "state.json").exists() or (Path(path) / "dataset_dict.json").exists():
            saved = datasets.load_from_disk(path)
            chosen = saved[split] if isinstance(saved, datasets.DatasetDict) else saved
            return chosen.to_iterable_dataset() if streaming else chosen
        return datasets.load_dataset(path, subset, split=split, streaming=streaming)
    except (OSError, ValueError, KeyError, DatasetsError) as error:
        reason = str(error).splitlines()[0]
        raise JobError(f"tasks.path={path}, subset={subset}, split={split} cannot be opened ({reason})") from error


def mapped(path: str, dataset: Any, field: str) -> Source:
    def load(key: Key) -> Sample:
        return read_record(f"tasks.path={path}, row {key[0]}", dataset[key[0]], field, f"row_{key[0]}")

    return Source(lambda: ((row,) for row in range(len(dataset))), load)


def streamed(path: str, dataset: Any, field: str) -> Source:
    # Without a name it goes with the process, however that ends.
    spool, name = tempfile.mkstemp()
    os.unlink(name)
    columns = (field, "task_id", "sample_idx")

    def keys() -> Iterator[Key]:
        offset = 0
        for row, record in enumerate(dataset):
            line = json.dumps({name: record[name] for name in columns if name in record}).encode()
            os.write(spool, line)
            yield row, offset, len(line)
            offset += len(line)

    def load(key: Key) -> Sample:
        row, offset, size = key
        record = json.loads(os.pread(spool, size, offset))
        return read_record(f"tasks.path={path}, row {row}", record, field, f"row_{row}")

    return Source(keys, load)
