"""Hugging Face `datasets`, of the hub or of a local folder; the package is the optional extra `datasets` of ours.

A map-style dataset stays in its memory-mapped Arrow files. A streamed one is written to a temporary file as far as it
is read, so that any sample can be loaded again.
"""

import errno
import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pod_job.config.tasks import TasksConfig
from pod_job.errors import JobError, first_line
from pod_job.prompts.sources.record import read_record
from pod_job.prompts.sources.sample import RECORD_FIELDS, BrokenTask, Key, Sample, Source
from pod_job.prompts.sources.watched import WatchedFiles, files_below
from pod_job.storage.local_files import reason_of


def dataset_source(config: TasksConfig) -> Source:
    """Opens a dataset: samples from the column `tasks.field` (text, messages or token ids) of its split, in order.

    Raises:
        JobError: `datasets` is not installed, or the dataset, its subset or its split cannot be opened.
    """
    files = files_below(Path(config.path))
    before = WatchedFiles(files)
    dataset = open_dataset(config)
    if not config.streaming and not files:
        before = WatchedFiles(Path(file["filename"]) for file in dataset.cache_files)
    return streamed(config, dataset, before) if config.streaming else mapped(config, dataset, before)


def open_dataset(config: TasksConfig) -> Any:
    path, subset, split = config.path, config.subset, config.split
    try:
        import datasets
        from datasets.exceptions import DatasetsError
    except ImportError:
        raise JobError("tasks.format=dataset needs the package datasets; pip install datasets") from None
    try:
        if (Path(path) / "state.json").exists() or (Path(path) / "dataset_dict.json").exists():
            # A format of torch or numpy may have been saved.
            chosen = saved_split(config, datasets.load_from_disk(path)).with_format(None)
            return chosen.to_iterable_dataset() if config.streaming else chosen
        return datasets.load_dataset(path, subset, split=split, streaming=config.streaming)
    except (OSError, ValueError, KeyError, AssertionError, DatasetsError) as error:
        what = f"tasks.path={path}, subset={subset}, split={split}"
        raise JobError(f"{what} cannot be opened ({first_line(error)})") from error


def saved_split(config: TasksConfig, saved: Any) -> Any:
    """Returns the rows that `tasks.split` selects of a dataset written by `save_to_disk`, as `load_dataset` would.

    A Dataset without a name of its split is the split `train`.

    Raises:
        JobError: a subset, which nothing saved this way has.
        ValueError: a split that is not there, or no split expression.
    """
    import datasets

    if config.subset is not None:
        raise JobError(f"tasks.subset={config.subset}: {config.path} was written by save_to_disk; leave out the subset")
    many = isinstance(saved, datasets.DatasetDict)
    splits: dict[str, datasets.Dataset] = (
        {str(name): saved[name] for name in saved} if many else {own_split(saved): saved}
    )
    sizes = {name: len(rows) for name, rows in splits.items()}
    spec = "+".join(splits) if config.split == "all" and "all" not in splits else config.split
    parts = [
        splits[part.splitname].select(range(part.from_, part.to))
        for part in datasets.ReadInstruction.from_spec(spec).to_absolute(sizes)
    ]
    return parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)


def own_split(dataset: Any) -> str:
    """Returns the name of the split that a Dataset was made from."""
    name = re.match(r"\w+", str(dataset.split or ""))
    return name[0] if name else "train"


def mapped(config: TasksConfig, dataset: Any, files: WatchedFiles) -> Source:
    # Other columns may hold what needs a package to be decoded.
    columns = [name for name in dataset.column_names if name in (config.field, *RECORD_FIELDS)]
    rows = dataset.select_columns(columns) if config.field in columns else dataset

    def load(key: Key) -> Sample:
        where = f"tasks.path={config.path}, row {key[0]}"
        try:
            record = rows[key[0]]
        except (OSError, ValueError) as error:  # pyarrow's are of these, too
            raise BrokenTask(f"{where} cannot be read ({first_line(error)})") from error
        return read_record(where, record, config.field, f"row_{key[0]}")

    return Source(lambda: ((row,) for row in range(len(dataset))), load, files)


def streamed(config: TasksConfig, dataset: Any, files: WatchedFiles) -> Source:
    # Without a name it goes with the process, however that ends.
    spool, name = tempfile.mkstemp()
    os.unlink(name)
    columns = (config.field, *RECORD_FIELDS)

    def keys() -> Iterator[Key]:
        offset = 0
        for row, record in enumerate(rows_of(config, dataset)):
            try:
                line = json.dumps({name: record[name] for name in columns if name in record}).encode()
            except (TypeError, ValueError, RecursionError):  # an image, a date
                line = b""
            try:
                if os.write(spool, line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError as error:
                raise JobError(f"TMPDIR={tempfile.gettempdir()}: {reason_of(error)}") from error
            yield row, offset, len(line)
            offset += len(line)

    def load(key: Key) -> Sample:
        row, offset, size = key
        where = f"tasks.path={config.path}, row {row}"
        if not size:
            raise BrokenTask(f"{where} has a value that JSON cannot hold")
        return read_record(where, json.loads(os.pread(spool, size, offset)), config.field, f"row_{row}")

    return Source(keys, load, files)


def rows_of(config: TasksConfig, dataset: Any) -> Iterator[Any]:
    """Yields the rows of a stream. JobError where it breaks off: a network, or a file of other columns."""
    from datasets.exceptions import DatasetsError

    row = 0
    try:
        for record in dataset:
            yield record
            row += 1
    except (OSError, ValueError, DatasetsError) as error:
        raise JobError(f"tasks.path={config.path} cannot be read after row {row} ({first_line(error)})") from error
