"""Documents of a counted source, loaded by their row from whatever files they lie in, which are checked for change."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial

import numpy as np
import pyarrow as pa
from jaxtyping import Int64

from pod_job.config.tasks import TasksConfig
from pod_job.errors import JobError
from pod_job.prompts.sources.arrays import ArrayReader
from pod_job.prompts.sources.blocks import BlockCache, FileReader, changed
from pod_job.prompts.sources.compressed import codec_of
from pod_job.prompts.sources.index import FORMAT, FileEntry, TaskIndex, unpack_marks
from pod_job.prompts.sources.lines import LinesReader
from pod_job.prompts.sources.listing import Listing, source_key
from pod_job.prompts.sources.places import FileState, crc32c_of, open_file
from pod_job.prompts.sources.sample import BrokenTask, Sample
from pod_job.prompts.sources.split import SplitPart
from pod_job.prompts.sources.tables import ArrowReader, CsvReader, ParquetReader, TableReader, check_schemas
from pod_job.prompts.sources.texts import TextReader

OPEN_READERS = 64
"""Files whose marks are held in memory."""
Read = Sample | BrokenTask


def make_reader(
    kind: str, entry: FileEntry, config: TasksConfig, cache: BlockCache | None = None, alone: bool = True
) -> FileReader:
    """Returns the reader of a file. JobError where its marks, or the file, cannot be read."""
    makers = {
        "jsonl": partial(LinesReader, config=config),
        "lines": LinesReader,
        "text": TextReader,
        "tokens": partial(ArrayReader, config=config),
        "parquet": partial(ParquetReader, config=config),
        "arrow": partial(ArrowReader, config=config),
        "csv": partial(CsvReader, config=config),
    }
    return makers[kind](open_file(entry.url), entry, cache or BlockCache(), alone)


class Documents:
    """All documents of the parts of a source; safe to share between threads."""

    def __init__(self, index: TaskIndex, config: TasksConfig) -> None:
        self.index, self.config, self._cache = index, config, BlockCache()
        segments = segments_of(index.files, index.parts)
        self._files = np.array([file for file, _ in segments], np.int64)
        self._firsts = np.array([rows.start for _, rows in segments], np.int64)
        self.starts: Int64[np.ndarray, " n"] = np.cumsum([0, *(len(rows) for _, rows in segments)]).astype(np.int64)
        """The first row of each run of documents of one file, and at the end the number of all."""
        self._readers: OrderedDict[int, FileReader] = OrderedDict()
        self._states = {entry.url: FileState(entry.size, entry.version) for entry in index.files}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def sequential(self) -> bool:
        """Whether files can only be read on."""
        return bool(len(self._files)) and self.reader(int(self._files[0])).sequential

    def load(self, rows: Int64[np.ndarray, " n"]) -> list[Read]:
        """Returns the documents of these rows. JobError for a file that was changed, or cannot be read."""
        rows = np.asarray(rows, np.int64)
        loaded: list[Read] = [BrokenTask("")] * len(rows)
        segments = np.searchsorted(self.starts, rows, side="right") - 1
        for segment in np.unique(segments).tolist():
            places = np.flatnonzero(segments == segment)
            places = places[np.argsort(rows[places], kind="stable")]
            inside = (rows[places] - self.starts[segment] + self._firsts[segment]).tolist()
            file = int(self._files[segment])
            try:
                samples = list(self.reader(file).samples(inside))
            except JobError:
                self.check(file)
                raise
            self.check(file)
            for place, sample in zip(places.tolist(), samples, strict=True):
                loaded[place] = sample
        return loaded

    def reader(self, file: int) -> FileReader:
        with self._lock:
            if file not in self._readers:
                files = self.index.files
                made = make_reader(self.index.kind, files[file], self.config, self._cache, len(files) == 1)
                self._readers[file] = made
                if len(self._readers) > OPEN_READERS:
                    self._readers.popitem(last=False)
            self._readers.move_to_end(file)
            return self._readers[file]

    def entry_row(self, row: int) -> int:
        """Returns the last row up to this one, of its file, at which reading can begin."""
        segment = int(np.searchsorted(self.starts, row, side="right")) - 1
        start, first = int(self.starts[segment]), int(self._firsts[segment])
        entry = self.reader(int(self._files[segment])).entry_row(row - start + first)
        return start + max(0, entry - first)

    def check(self, file: int) -> None:
        """Raises JobError that names the file, where its content is no longer what was counted.

        Of a file on a disk that has another time but its size, as one that was copied, the checksum decides.
        """
        entry = self.index.files[file]
        opened = open_file(entry.url)
        if entry.url.startswith("hf://"):
            return
        state = opened.state()
        if state == self._states[entry.url]:
            return
        if state is None or state.size != entry.size or entry.checksum != crc32c_of(opened, entry.size):
            raise changed(entry.url)
        self._states[entry.url] = state

    def forget(self) -> None:
        """Forgets the content that is held in memory."""
        with self._lock:
            self._cache = BlockCache()
            self._readers.clear()

    def check_all(self) -> None:
        """Checks every file, as `check` does."""
        for file in range(len(self.index.files)):
            self.check(file)


def segments_of(files: Sequence[FileEntry], parts: Sequence[SplitPart]) -> list[tuple[int, range]]:
    """Returns the files (by their numbers) that the parts of the splits consist of, and the rows of each."""
    if not parts:
        return [(number, range(entry.samples or 0)) for number, entry in enumerate(files) if entry.samples]
    segments = []
    for part in parts:
        inside = [number for number, entry in enumerate(files) if entry.split == part.name]
        wanted = part.rows(sum(files[number].samples or 0 for number in inside))
        start = 0
        for number in inside:
            count = files[number].samples or 0
            rows = range(max(wanted.start - start, 0), min(wanted.stop - start, count))
            if len(rows):
                segments.append((number, rows))
            start += count
    return segments


def sequential_sizes(kind: str, files: Sequence[FileEntry]) -> tuple[int, ...]:
    """Returns the sizes of the files, or parts of files, that can only be read from their start."""
    sizes: list[int] = []
    for entry in files:
        if kind == "csv" or (kind in ("jsonl", "lines") and codec_of(entry.url) is not None):
            starts = unpack_marks(entry.entries, 2)[:, 0] if entry.entries else np.zeros(1, np.int64)
            sizes += np.diff(starts, append=entry.size).tolist()
    return tuple(sizes)


def counted(kind: str, entry: FileEntry, config: TasksConfig) -> FileEntry:
    """Returns the entry of a file with its samples, marks and checksum. JobError where the file cannot be read."""
    result = make_reader(kind, entry, config).count()
    present = open_file(entry.url).state()
    if present is not None and present != FileState(entry.size, entry.version):
        raise changed(entry.url)
    checksum = entry.checksum or result.checksum
    return FileEntry(
        url=entry.url,
        name=entry.name,
        size=entry.size,
        version=entry.version,
        checksum=checksum,
        samples=result.samples,
        marks=result.marks,
        entries=result.entries,
        split=entry.split,
    )


def count_source(listing: Listing, config: TasksConfig) -> TaskIndex:
    """Returns the index of a source, all of whose files are counted here."""
    check_columns(listing, config)
    files = [counted(listing.kind, entry, config) for entry in listing.files]
    return TaskIndex(FORMAT, listing.kind, source_key(config), files, list(listing.parts))


def check_columns(listing: Listing, config: TasksConfig) -> None:
    """Raises JobError that names a table without the column `tasks.field`, or with another type there than others."""
    first: tuple[str, pa.Schema] | None = None
    for entry in listing.files if listing.kind in ("parquet", "arrow", "csv") else ():
        reader = make_reader(listing.kind, entry, config)
        assert isinstance(reader, TableReader)
        schema = reader.schema()
        check_schemas(dict([first or (entry.url, schema), (entry.url, schema)]), config.field)
        first = first or (entry.url, schema)
