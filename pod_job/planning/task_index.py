"""The tasks of a run: of a large source by its index, which hosts make together at the first start and keep.

index/KEY/CONTENT/part_000001.json holds some of the files, counted by one host; index/KEY.json all of them. KEY stands
for what the configuration asks for, CONTENT for the files that were there.
"""

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import partial
from typing import Literal

from pod_job.config.tasks import TasksConfig
from pod_job.errors import JobError
from pod_job.formats.checksummed_json import with_checksum
from pod_job.formats.records import Record, decode, encode
from pod_job.planning.shared_work import Piece, Share, kept, share_work
from pod_job.planning.token_budget import TokenCounter, count_within_budget
from pod_job.prompts.sources.documents import check_columns, count_source, counted
from pod_job.prompts.sources.estimate import estimate
from pod_job.prompts.sources.file_lists import is_named
from pod_job.prompts.sources.index import FORMAT, FileEntry, TaskIndex
from pod_job.prompts.sources.listing import Listing, list_source, source_key
from pod_job.prompts.tasks import (
    Tasks,
    estimated_tasks,
    indexed_tasks,
    is_read_whole,
    tasks_in_budget,
    whole_tasks,
    within_tokens,
)
from pod_job.run_folder.layout import INDEX, RUN, index_file, index_part
from pod_job.storage.folder import Folder, exists

PIECE_BYTES, PIECE_FILES = 512 << 20, 512
"""Bytes and files that are counted for one part of an index, unless a file is larger."""
THREADS = 8
CHECKED_FILES = 256
"""Files of an index that are all looked at before a start; of more, each when it is first read."""
PATIENCE_S, SLOWEST_BYTES_S = 20.0, 50e6

log = logging.getLogger("pod_job")


class Counting(Enum):
    """Who counts a large source: this process, all hosts together, or nobody: it is estimated."""

    here = "here"
    hosts = "hosts"
    nobody = "nobody"


@dataclass(frozen=True)
class TaskReading:
    """How the tasks of a run are read.

    Attributes:
        counting: who counts a large source without an index. The index of a run folder is read unless it is `here`:
            the folder may be a stranger's then, and the index names files.
        share: this host's share of the counting.
    """

    counting: Counting = Counting.here
    share: Share = field(default_factory=Share)


COUNTED_HERE = TaskReading()
ESTIMATED = TaskReading(Counting.nobody)
"""Reading on a workstation, which never counts a large source."""


class IndexPart(Record, frozen=True):
    """Some files of a source, counted."""

    format: Literal[1]
    files: list[FileEntry]


def find_tasks(
    config: TasksConfig,
    vocab: int = 2**31,
    counter: TokenCounter | None = None,
    folder: Folder | None = None,
    reading: TaskReading = COUNTED_HERE,
) -> Tasks:
    """Returns the tasks of a run.

    Args:
        counter: counts the tokens of a sample; needed with `tasks.max_tokens`.
        folder: the run folder.
    Raises:
        JobError: as `read_tasks`; or a file that was changed since it was indexed, by name.
    """
    known = folder is not None and reading.counting is not Counting.here
    index = read_index(folder, config) if folder is not None and known else None
    if index is None or folder is None or not exists(folder, RUN):
        listing = list_source(config)
        if is_read_whole(listing, config):
            return whole_tasks(listing, config, vocab, counter)
        if index is not None and listing_of(index).content != listing.content:
            index = None  # nothing was stored of what it describes
        if index is None and reading.counting is Counting.nobody:
            return estimated_tasks(listing, config, estimate(listing, config), counter, vocab)
        if index is None and folder is not None and reading.counting is Counting.hosts:
            index = index_together(listing, config, folder, reading.share)
        index = index or count_source(listing, config)
    tasks = indexed_tasks(index, config, vocab)
    if len(index.files) <= CHECKED_FILES:
        tasks.samples.documents.check_all()
    if config.max_tokens is None or counter is None:
        return tasks
    if folder is not None and known:
        return within_tokens(tasks, count_within_budget(tasks, config, counter, folder, reading.share))
    return within_tokens(tasks, tasks_in_budget(tasks, config, counter))


def listing_of(index: TaskIndex) -> Listing:
    return Listing(index.kind, index.files, tuple(index.parts))


def read_index(folder: Folder, config: TasksConfig) -> TaskIndex | None:
    """Returns the index of the source in the run folder, if it has one that is not damaged.

    Raises:
        JobError: it lists a file that the configuration does not name; it may be a stranger's.
    """
    name = index_file(source_key(config))
    data = kept(folder, name)
    if data is None:
        return None
    index = decode(data, TaskIndex, f"{folder.url}/{name}")
    places = (*config.paths, *config.places)
    if other := next((file.url for file in index.files if not any(is_named(file.url, path) for path in places)), None):
        raise other_file(folder, name, other)
    return index


def other_file(folder: Folder, name: str, url: str) -> JobError:
    """Returns the error for an index that lists a file which tasks.path does not name."""
    return JobError(f"{folder.url}/{name}: lists {url}, which tasks.path does not name; remove it to count again")


def index_together(listing: Listing, config: TasksConfig, folder: Folder, share: Share) -> TaskIndex:
    """Counts this host's share of the files, waits for the others', and keeps the index in the run folder."""
    started, key = time.monotonic(), source_key(config)
    groups = grouped(listing.files)
    log.info("counting %d files, %.1f GB, in %d parts", len(listing.files), total(listing.files) / 1e9, len(groups))
    pieces = [
        Piece(
            index_part(key, listing.content, number),
            partial(count_part, listing, group, config),
            PATIENCE_S + total(group) / SLOWEST_BYTES_S,
        )
        for number, group in enumerate(groups, start=1)
    ]
    parts = share_work(folder, pieces, share)
    files = [
        entry
        for number, piece in enumerate(pieces)
        for entry in decode(parts[number], IndexPart, f"{folder.url}/{piece.name}").files
    ]
    listed = {entry.url for entry in listing.files}
    if other := next((entry.url for entry in files if entry.url not in listed), None):
        raise other_file(folder, f"{INDEX}{key}", other)
    index = TaskIndex(FORMAT, listing.kind, key, files, list(listing.parts))
    if read_index(folder, config) != index:
        folder.replace(index_file(key), with_checksum(encode(index)))
    samples = sum(entry.samples or 0 for entry in files)
    log.info("counted %s samples in %.1f s", f"{samples:,}", time.monotonic() - started)
    return index


def grouped(files: list[FileEntry]) -> list[list[FileEntry]]:
    """Returns the files in runs that are counted at a time."""
    groups: list[list[FileEntry]] = [[]]
    for entry in files:
        if groups[-1] and (total(groups[-1]) + entry.size > PIECE_BYTES or len(groups[-1]) == PIECE_FILES):
            groups.append([])
        groups[-1].append(entry)
    return groups


def total(files: list[FileEntry]) -> int:
    return sum(entry.size for entry in files)


def count_part(listing: Listing, files: list[FileEntry], config: TasksConfig) -> bytes:
    """Returns the record of some files, counted, whose columns are as those of the first file of all."""
    first = listing.files[:1] if files[0] != listing.files[0] else []
    check_columns(replace(listing, files=[*first, *files]), config)
    with ThreadPoolExecutor(THREADS) as threads:
        return encode(IndexPart(FORMAT, list(threads.map(lambda entry: counted(listing.kind, entry, config), files))))
