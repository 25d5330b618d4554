"""Files of lines: JSON objects or plain text, as they are or compressed.

Lines are counted at the speed of the disk; every BLOCK lines their place is marked, by which a batch is found. A
compressed file can only be read from its start on.
"""

import io
from collections.abc import Iterator
from itertools import accumulate, islice

import numpy as np
import pyarrow as pa
from jaxtyping import Int64

from pod_job.config.tasks import TasksConfig
from pod_job.errors import JobError, first_line
from pod_job.formats.json_text import parse_json
from pod_job.prompts.sources.blocks import BlockCache, Counted, FileReader
from pod_job.prompts.sources.index import FileEntry, pack_marks, unpack_marks
from pod_job.prompts.sources.places import DataFile, RangedFile, unreadable
from pod_job.prompts.sources.record import read_record
from pod_job.prompts.sources.sample import BrokenTask, Sample, checked
from pod_job.storage.checksums import RunningChecksum

BLOCK = 64
"""Lines between two marks."""
PIECE_BYTES = 2 << 20
LONGEST_LINE = 1 << 30
CODECS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
NEWLINE = 10
BLANK = np.zeros(256, bool)
BLANK[[9, 10, 11, 12, 13, 32]] = True


def codec_of(url: str) -> str | None:
    """Returns the compression of a file by its name; None where it is not compressed."""
    return next((codec for suffix, codec in CODECS.items() if url.lower().endswith(suffix)), None)


def pieces_of(file: DataFile, size: int, checksum: RunningChecksum | None = None) -> Iterator[bytes]:
    """Yields the content of a file in pieces, decompressed. JobError for a compressed file that is cut or damaged."""
    raw = ChecksummedFile(file, size, checksum)
    if codec_of(file.url) is not None:
        yield from decompressed(raw, file.url)
        return
    while piece := raw.read(PIECE_BYTES):
        yield piece


def decompressed(raw: RangedFile, url: str) -> Iterator[bytes]:
    """Yields the content of a compressed file, and reads that to its end. JobError where it is cut or damaged."""
    codec, size = codec_of(url), raw.size
    buffered = io.BufferedReader(raw, PIECE_BYTES)
    try:
        stream = pa.CompressedInputStream(pa.PythonFile(buffered, "r"), codec)
        while piece := stream.read(PIECE_BYTES):
            yield piece
        if size == 0:
            raise OSError("it is empty")
    except (OSError, pa.ArrowInvalid) as error:
        raise unreadable(url, f"cut short or damaged: {first_line(error)}; copy it again") from error
    buffered.read()  # what follows the compressed content counts too


class ChecksummedFile(RangedFile):
    """A file whose checksum is taken as it is read from start to end."""

    def __init__(self, file: DataFile, size: int, checksum: RunningChecksum | None) -> None:
        super().__init__(file, size)
        self.checksum = checksum

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        if self.checksum is not None:
            self.checksum.update(data)
        return data


def scan_lines(url: str, pieces: Iterator[bytes]) -> tuple[int, Int64[np.ndarray, "n 2"]]:
    """Returns the number of lines that are not blank, and of every BLOCK-th its offset and its number among all lines.

    The last mark is the end of the content.
    """
    rows = lines = place = 0
    marks: list[np.ndarray] = []
    rest = b""
    for piece in pieces:
        data = np.frombuffer(rest + piece if rest else piece, np.uint8)
        ends = np.flatnonzero(data == NEWLINE)
        if not len(ends):
            rest += piece
            if len(rest) > LONGEST_LINE:
                raise JobError(f"tasks.path={url}: a line is longer than {LONGEST_LINE >> 20} MiB; is it text?")
            continue
        starts = np.concatenate([[0], ends[:-1] + 1])
        numbers = filled(data, starts, ends)
        chosen = numbers[-rows % BLOCK :: BLOCK]
        marks.append(np.stack([starts[chosen] + place, chosen + lines], axis=1))
        rows, lines = rows + len(numbers), lines + len(ends)
        rest = data[ends[-1] + 1 :].tobytes()
        place += int(ends[-1]) + 1
    if rest.strip():
        if rows % BLOCK == 0:
            marks.append(np.array([[place, lines]]))
        rows, lines = rows + 1, lines + 1
    marks.append(np.array([[place + len(rest), lines]]))
    return rows, np.concatenate(marks).astype(np.int64)


def filled(data: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Returns the numbers of the lines [start, end) that are not blank."""
    suspects = np.flatnonzero(BLANK[data[starts]])  # of an empty line, its line end
    if not len(suspects):
        return np.arange(len(starts))
    blank = [number for number in suspects.tolist() if not data[starts[number] : ends[number]].tobytes().strip()]
    return np.delete(np.arange(len(starts)), blank)


class LinesReader(FileReader):
    """Lines of a file."""

    def __init__(
        self, file: DataFile, entry: FileEntry, cache: BlockCache, alone: bool, config: TasksConfig | None = None
    ) -> None:
        """`config`: lines are JSON objects, whose field it names; None: each is a text."""
        self.config = config
        self.sequential = codec_of(entry.url) is not None
        super().__init__(file, entry, cache, alone)

    def count(self) -> Counted:
        checksum = RunningChecksum()
        rows, marks = scan_lines(self.entry.url, pieces_of(self.file, self.entry.size, checksum))
        return Counted(rows, pack_marks(marks), f"crc32c:{checksum.stored.crc32c}")

    def block_starts(self) -> Int64[np.ndarray, " n"]:
        marks = unpack_marks(self.entry.marks, 2)
        self.offsets, self.numbers = marks[:, 0], marks[:, 1]
        starts = np.arange(len(marks), dtype=np.int64) * BLOCK
        starts[-1] = self.entry.samples or 0
        return starts

    def entry_block(self, block: int) -> int:
        return 0 if self.sequential else block

    def stream(self, block: int, stop: int) -> Iterator[bytes]:
        if self.sequential:
            yield from self._decompressed()
            return
        while block < stop:
            # As many blocks as make a piece, in one request.
            last = int(np.searchsorted(self.offsets, self.offsets[block] + PIECE_BYTES, side="right")) - 1
            last = min(stop, max(last, block + 1))
            start = int(self.offsets[block])
            data = self.file.read(start, int(self.offsets[last]) - start)
            for number in range(block, last):
                yield data[int(self.offsets[number]) - start : int(self.offsets[number + 1]) - start]
            block = last

    def _decompressed(self) -> Iterator[bytes]:
        pieces, data, place = pieces_of(self.file, self.entry.size), b"", 0
        for start, stop in zip(self.offsets[:-1].tolist(), self.offsets[1:].tolist(), strict=True):
            while place + len(data) < stop and (piece := next(pieces, b"")):
                data, place = data[start - place :] + piece, start
            yield data[start - place : stop - place]

    def opened(self, block: bytes) -> list[tuple[int, bytes]]:
        return [(number, line) for number, line in enumerate(block.split(b"\n")) if line.strip()]

    def sample(self, block: list[tuple[int, bytes]], index: int, row: int) -> Sample:
        if index >= len(block):
            raise BrokenTask(f"{self.where}, row {row} is missing")
        offset, line = block[index]
        return self.parse(line, int(self.numbers[(row - index) // BLOCK]) + offset + 1)

    def head(self, count: int) -> Iterator[Sample | BrokenTask]:
        rest = b""

        def lines() -> Iterator[bytes]:
            nonlocal rest
            for piece in pieces_of(self.file, self.entry.size):
                *complete, rest = (rest + piece).split(b"\n")
                yield from complete
            yield rest

        numbered = ((number, line) for number, line in enumerate(lines(), start=1) if line.strip())
        for number, line in islice(numbered, count):
            yield self.attempt(line, number)

    def around(self, offset: int, size: int) -> tuple[list[Sample | BrokenTask], int]:
        """Returns the samples of the whole lines in `size` bytes from `offset`, and the bytes of those lines.

        The numbers of the lines are not known. Where all of it is one line, it counts as one.
        """
        first, *lines = self.file.read(offset, size).split(b"\n")
        lines = lines[:-1] if offset else [first, *lines[:-1]]
        places = accumulate((len(line) + 1 for line in lines), initial=offset + (len(first) + 1 if offset else 0))
        numbered = zip(lines, places, strict=False)
        documents = [self.attempt(line, f"byte {place}") for line, place in numbered if line.strip()]
        return documents, sum(map(len, lines)) + len(lines) if lines else size

    def attempt(self, line: bytes, number: int | str) -> Sample | BrokenTask:
        try:
            return self.parse(line, number)
        except BrokenTask as broken:
            return broken

    def parse(self, line: bytes, number: int | str) -> Sample:
        """Returns the sample of a line. BrokenTask for one that has none.

        Args:
            number: of the line; where that is not known, its place as text: `byte 1234`.
        """
        label = f"line {number}" if isinstance(number, int) else number
        where, task_id = f"{self.where}, {label}", self.task_id(label.replace(" ", "_"))
        if self.config is None:
            try:
                codec = "utf-8-sig" if number == 1 else "utf-8"
                return checked(where, Sample(task_id, 0, line.removesuffix(b"\r").decode(codec)))
            except UnicodeDecodeError as error:
                raise BrokenTask(f"{where} is not UTF-8 text ({error})") from error
        try:
            record = parse_json(line)
        except ValueError as error:
            raise BrokenTask(f"{where} is not JSON ({error})") from error
        return read_record(where, record, self.config.field, task_id)
