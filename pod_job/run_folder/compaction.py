"""What a compaction has joined: files of consecutive batches, whole and unchanged, one after the other in one file.

Such a file is a safetensors file whose data are the files in it; `compaction/record.json` says which. That record is
written once, when all of them are durable: from then on they count, and the files that they hold are no longer needed.
"""

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pod_job import __version__
from pod_job.errors import JobError
from pod_job.formats.checksummed_json import open_sealed, seal
from pod_job.run_folder import layout
from pod_job.run_folder.commit import wrong_fields
from pod_job.storage.checksums import Stored, joined
from pod_job.storage.folder import Folder, Readable

ROWS = "rows"
"""The series of the rows tables; those of vectors are called like their taps."""
MOST_BYTES = 1 << 48
"""Of a file; a size beyond is damage."""


@dataclass(frozen=True)
class JoinedFile:
    """The files of `series` of the batches from `first` on, of so many bytes each, behind a header of its own."""

    series: str
    first: int
    sizes: tuple[int, ...]
    header: Stored

    @property
    def name(self) -> str:
        return layout.joined_file(self.series, self.first, self.first + len(self.sizes) - 1)

    @property
    def places(self) -> Iterable[tuple[int, int, int]]:
        """Batch, first byte and number of bytes of each file in it."""
        starts = itertools.accumulate(self.sizes, initial=self.header.size)
        return zip(itertools.count(self.first), starts, self.sizes, strict=False)

    def file_of(self, batch: int) -> str:
        """The name that the file of the batch had."""
        return layout.rows_file(batch) if self.series == ROWS else layout.activations_file(self.series, batch)


def render(files: Sequence[JoinedFile]) -> bytes:
    """The record's text."""
    told = [
        {
            "series": file.series,
            "first": file.first,
            "sizes": file.sizes,
            "header_size": file.header.size,
            "header_crc32c": file.header.crc32c,
        }
        for file in files
    ]
    stamp = {"compacted": datetime.now(UTC).isoformat(timespec="seconds"), "pod_job_version": __version__}
    return seal(json.dumps({"format": layout.FORMAT, **stamp, "files": told}))


def read_compaction(folder: Folder) -> list[JoinedFile] | None:
    """The files that a compaction has made; None where there was none. JobError where the record is damaged."""
    name = f"{folder.url}/{layout.COMPACTION}"
    try:
        record = open_sealed(folder.read(layout.COMPACTION), name)
    except FileNotFoundError:
        return None
    if wrong_fields(record, {"format": int, "files": list}) or record["format"] != layout.FORMAT:
        raise JobError(f"{name}: not the record of a compaction in format {layout.FORMAT}")
    for file in record["files"]:
        wrong = wrong_fields(file, _FIELDS)
        sizes = () if wrong else (*file["sizes"], file["header_size"])
        if wrong or not all(type(size) is int and 0 <= size < MOST_BYTES for size in sizes):
            raise JobError(f"{name}: damaged: {wrong or 'sizes'} of a file missing or of another type")
    return [
        JoinedFile(
            file["series"], file["first"], tuple(file["sizes"]), Stored(file["header_size"], file["header_crc32c"])
        )
        for file in record["files"]
    ]


_FIELDS = {"series": str, "first": int, "sizes": list, "header_size": int, "header_crc32c": str}


def place(
    url: str, files: Sequence[JoinedFile], batches: Sequence[dict[str, Any]], rows_files: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Lets entries of metadata.json say where their files lie now; returns the files that hold them.

    JobError where the record of the compaction contradicts the commit records, from which the entries come.
    """
    entries = {(entry["layer"], entry["batch_id"]): entry for entry in batches}
    entries |= {(ROWS, entry["batch_id"]): entry for entry in rows_files}
    told = []
    for file in files:
        contents, bare = [file.header], file.name.removeprefix(layout.ACTIVATIONS)
        for batch, start, size in file.places:
            entry = entries.pop((file.series, batch), None)  # a second file of the same batch finds none
            if entry is None or entry["size"] != size:
                there = "none" if entry is None else f"{entry['size']} bytes"
                raise JobError(
                    f"{url}/{layout.COMPACTION}: has {size} bytes of batch {batch} of {file.series}, the commit "
                    f"records leave {there}; one of them is damaged"
                )
            contents.append(Stored(size, entry["crc32c"]))
            entry |= {"file": bare, "start": start} | ({"offset": start + entry["offset"]} if "offset" in entry else {})
        try:
            whole = joined(contents)
        except ValueError as error:
            raise JobError(f"{url}/{layout.COMPACTION}: damaged: {bare} has no checksum ({error})") from error
        told.append({"file": bare, "size": whole.size, "crc32c": whole.crc32c})
    return told


class Inside:
    """A run folder in which files that were joined can still be read by the names that they had."""

    def __init__(self, folder: Folder, files: Sequence[JoinedFile]) -> None:
        self.url = folder.url
        self._folder = folder
        self._places: Mapping[str, tuple[str, int, int]] = {
            file.file_of(batch): (file.name, start, size) for file in files for batch, start, size in file.places
        }

    def read(self, name: str, start: int = 0, size: int | None = None) -> bytes:
        """As a Readable; FileNotFoundError where the file that holds it is missing."""
        if name not in self._places:
            return self._folder.read(name, start, size)
        file, first, whole = self._places[name]
        rest = max(0, whole - start)
        return self._folder.read(file, first + start, rest if size is None else min(size, rest))

    def holder_of(self, name: str) -> str | None:
        return self._places[name][0] if name in self._places else None

    def local_path(self, name: str) -> None:
        """None: a file in another one has no path."""


def inside(folder: Folder, files: Sequence[JoinedFile]) -> Readable:
    """The folder, with the names that its joined files had where there are any."""
    return Inside(folder, files) if files else folder


def called(folder: Readable, name: str) -> str:
    """The file in errors: by its own name, and by that of the file that holds it."""
    holder = folder.holder_of(name) if isinstance(folder, Inside) else None
    return f"{folder.url}/{name}" if holder is None else f"{folder.url}/{holder}, in it {name.rpartition('/')[2]}"
