"""Files that a compaction has joined: those of consecutive batches, unchanged, one after the other in one file.

Such a file is a safetensors file whose data are the files in it; `compaction/record.json` says which. That record is
written once, when all of them are durable: from then on they count, and the files that they hold are no longer needed.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import msgspec

from pod_job import __version__
from pod_job.errors import JobError
from pod_job.formats.checksummed_json import read_checksummed, with_checksum
from pod_job.formats.records import Count, Record, decode, encode, now, read_bounded
from pod_job.run_folder import layout
from pod_job.run_folder.metadata import BatchEntry, JoinedEntry, RowsEntry
from pod_job.storage.checksums import Stored, joined
from pod_job.storage.folder import Folder, Readable

MOST_RECORD_BYTES = 1 << 30
"""Size of the record of a compaction: some ten bytes for each file of each batch."""
ROWS = "rows"
"""The series of the rows tables; those of vectors are called like their taps."""


class JoinedFile(Record, frozen=True):
    """The files of `series` of the batches from `first` on, of `sizes` bytes each, behind a header of its own."""

    series: str
    first: Count
    sizes: list[Count]
    header_size: Count
    header_crc32c: str

    @property
    def name(self) -> str:
        return layout.joined_file(self.series, self.first, self.first + len(self.sizes) - 1)

    @property
    def header(self) -> Stored:
        return Stored(self.header_size, self.header_crc32c)

    @property
    def places(self) -> Iterable[tuple[int, int, int]]:
        """Batch, first byte and number of bytes of each file in it."""
        starts = itertools.accumulate(self.sizes, initial=self.header_size)
        return zip(itertools.count(self.first), starts, self.sizes, strict=False)

    def file_of(self, batch: int) -> str:
        """Returns the name that the file of the batch had."""
        return layout.rows_file(batch) if self.series == ROWS else layout.activations_file(self.series, batch)


class CompactionRecord(Record, frozen=True):
    """compaction/record.json."""

    format: Literal[2]
    compacted: str
    pod_job_version: str
    files: list[JoinedFile]


def render(files: Sequence[JoinedFile]) -> bytes:
    """Returns the content of compaction/record.json."""
    return with_checksum(encode(CompactionRecord(layout.FORMAT, now(), __version__, list(files))))


def read_compaction(folder: Folder) -> list[JoinedFile] | None:
    """Returns the files that a compaction has made; None where there was none. JobError where its record is damaged."""
    name = f"{folder.url}/{layout.COMPACTION}"
    try:
        data = read_checksummed(read_bounded(folder, layout.COMPACTION, MOST_RECORD_BYTES), name)
    except FileNotFoundError:
        return None
    return decode(data, CompactionRecord, name).files


def place(
    url: str, files: Sequence[JoinedFile], batches: list[BatchEntry], rows_files: list[RowsEntry]
) -> list[JoinedEntry]:
    """Replaces entries of metadata.json by such that say where their files lie now; returns the files that hold them.

    Raises:
        JobError: the record of the compaction contradicts the commit records, from which the entries come.
    """
    recorded = {(entry.layer, entry.batch_id): Stored(entry.size, entry.crc32c) for entry in batches}
    recorded |= {(ROWS, entry.batch_id): Stored(entry.size, entry.crc32c) for entry in rows_files}
    holders, places = [], {}
    for file in files:
        contents, bare = [file.header], file.name.removeprefix(layout.ACTIVATIONS)
        for batch, start, size in file.places:
            stored = recorded.pop((file.series, batch), None)  # a second file of the same batch finds none
            if stored is None or stored.size != size:
                left = "none" if stored is None else f"{stored.size} bytes"
                raise JobError(
                    f"{url}/{layout.COMPACTION}: has {size} bytes of batch {batch} of {file.series}, the commit "
                    f"records leave {left}; copy {layout.commit_file(batch)} and {layout.COMPACTION} again"
                )
            contents.append(stored)
            places[file.series, batch] = bare, start
        try:
            whole = joined(contents)
        except ValueError as error:
            raise JobError(f"{url}/{layout.COMPACTION}: damaged: {bare} has no checksum ({error})") from error
        holders.append(JoinedEntry(bare, whole.size, whole.crc32c))
    for i, entry in enumerate(batches):
        if (entry.layer, entry.batch_id) in places:
            bare, start = places[entry.layer, entry.batch_id]
            batches[i] = msgspec.structs.replace(entry, file=bare, start=start, offset=start + entry.offset)
    for i, entry in enumerate(rows_files):
        if (ROWS, entry.batch_id) in places:
            bare, start = places[ROWS, entry.batch_id]
            rows_files[i] = msgspec.structs.replace(entry, file=bare, start=start)
    return holders


class CompactedFolder:
    """A run folder in which files that were joined can still be read by the names that they had."""

    def __init__(self, folder: Folder, files: Sequence[JoinedFile]) -> None:
        self.url = folder.url
        self._folder = folder
        self._places: Mapping[str, tuple[str, int, int]] = {
            file.file_of(batch): (file.name, start, size) for file in files for batch, start, size in file.places
        }

    def read(self, name: str, start: int = 0, size: int | None = None) -> bytes:
        """Reads as a Readable does; FileNotFoundError where the file that holds this one is missing."""
        if name not in self._places:
            return self._folder.read(name, start, size)
        file, first, file_bytes = self._places[name]
        rest = max(0, file_bytes - start)
        return self._folder.read(file, first + start, rest if size is None else min(size, rest))

    def holder_of(self, name: str) -> str | None:
        """Returns the name of the file that holds this one; None where it lies by itself."""
        return self._places[name][0] if name in self._places else None

    def local_path(self, name: str) -> None:
        """Returns None: a file in another one has no path."""


def open_compacted(folder: Folder, files: Sequence[JoinedFile]) -> Readable:
    """Returns the folder with the names that its joined files had, where there are any."""
    return CompactedFolder(folder, files) if files else folder


def full_name(folder: Readable, name: str) -> str:
    """Returns the file's name in errors: its own, and that of the file that holds it."""
    holder = folder.holder_of(name) if isinstance(folder, CompactedFolder) else None
    return f"{folder.url}/{name}" if holder is None else f"{folder.url}/{holder}, in it {name.rpartition('/')[2]}"
