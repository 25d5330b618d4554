"""Files of lines: JSON objects or plain text, as they are or compressed.

Lines are counted at the speed of the disk; the places of some are marked, by which a batch is found: every 64th, or
more where lines are long, since a reader takes all lines between two marks. A compressed file can only be read from its
start on, or from the start of one of its members, where a gzip file has several (as `bgzip` writes it, or `cat` joins
files).
"""

from collections.abc import Iterator
from itertools import accumulate, islice, pairwise

import numpy as np
from jaxtyping import Int64

from pod_job.config.tasks import TasksConfig
from pod_job.errors import JobError
from pod_job.formats.json_text import parse_json
from pod_job.prompts.sources.blocks import BlockCache, Counted, FileReader
from pod_job.prompts.sources.compressed import check_plain, codec_of, pieces_of
from pod_job.prompts.sources.index import FileEntry, pack_marks, unpack_marks
from pod_job.prompts.sources.places import DataFile
from pod_job.prompts.sources.record import read_record
from pod_job.prompts.sources.sample import BrokenTask, Sample, checked
from pod_job.storage.checksums import RunningChecksum

PIECE_BYTES = 2 << 20
"""Bytes of blocks that are read in one request, about."""
MOST_LINES = 64
"""Lines between two marks at most; a power of two, as all numbers of lines between marks are."""
BLOCK_BYTES, BLOCKS = 16 << 10, 4096
"""Bytes between two marks, about: so many, or the file's by BLOCKS if that is more."""
MARKS_IN_MEMORY = 1 << 16
ENTRY_BYTES = 1 << 20
"""Compressed bytes between two members that are entered, at least; or the file's by BLOCKS if that is more."""
LONGEST_LINE = 1 << 30
NEWLINE = 10
BLANK = np.zeros(256, bool)
BLANK[[9, 10, 11, 12, 13, 32]] = True


def scan_lines(url: str, pieces: Iterator[bytes]) -> tuple[int, Int64[np.ndarray, "n 2"]]:
    """Returns the number of lines that are not blank, and of every n-th its offset and its number among all lines.

    The last mark is the end of the content. `lines_of_block` tells n.
    """
    rows = lines = place = 0
    step = 1
    marks: list[np.ndarray] = []
    rest = bytearray()
    for piece in pieces:
        if b"\n" not in piece:
            rest += piece
            if len(rest) > LONGEST_LINE:
                raise JobError(f"tasks.path={url}: a line is longer than {LONGEST_LINE >> 20} MiB; is it text?")
            continue
        data = np.frombuffer(bytes(rest) + piece if rest else piece, np.uint8)
        ends = np.flatnonzero(data == NEWLINE)
        starts = np.concatenate([[0], ends[:-1] + 1])
        numbers = filled(data, starts, ends)
        chosen = numbers[-rows % step :: step]
        marks.append(np.stack([starts[chosen] + place, chosen + lines], axis=1))
        if step < MOST_LINES and sum(map(len, marks)) > MARKS_IN_MEMORY:
            marks, step = [np.concatenate(marks)[::2]], 2 * step
        rows, lines = rows + len(numbers), lines + len(ends)
        rest = bytearray(data[ends[-1] + 1 :])
        place += int(ends[-1]) + 1
    if rest.strip():
        if rows % step == 0:
            marks.append(np.array([[place, lines]]))
        rows, lines = rows + 1, lines + 1
    size = place + len(rest)
    block_bytes = max(BLOCK_BYTES, size // BLOCKS)
    wanted = step
    while wanted < MOST_LINES and 2 * wanted * size <= block_bytes * rows:
        wanted *= 2
    thinned = np.concatenate([np.empty((0, 2), np.int64), *marks])[:: wanted // step]
    return rows, np.concatenate([thinned, [[size, lines]]]).astype(np.int64)


def lines_of_block(rows: int, blocks: int) -> int:
    """Returns the lines between two marks of a file with so many lines and blocks. ValueError where none are."""
    for power in range(MOST_LINES.bit_length()):
        if -(-rows // (1 << power)) == blocks:
            return 1 << power
    raise ValueError(f"{blocks} blocks of {rows} lines")


def filled(data: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Returns the numbers of the lines [start, end) that are not blank."""
    if not BLANK[data[starts]].any():  # of an empty line, its line end
        return np.arange(len(starts))
    return np.flatnonzero(np.logical_or.reduceat(~BLANK[data[: ends[-1] + 1]], starts))


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
        checksum, size = RunningChecksum(), self.entry.size
        entries = [(0, 0)]

        def note(place: int, content: int) -> None:
            if place - entries[-1][0] >= max(ENTRY_BYTES, size // BLOCKS):
                entries.append((place, content))

        if not self.sequential:
            check_plain(self.entry.url, self.file.read(0, 4))
        rows, marks = scan_lines(self.entry.url, pieces_of(self.file, size, checksum, note=note))
        packed = pack_marks(np.array(entries)) if len(entries) > 1 else b""
        return Counted(rows, pack_marks(marks), f"crc32c:{checksum.stored.crc32c}", packed)

    def block_starts(self) -> Int64[np.ndarray, " n"]:
        marks = unpack_marks(self.entry.marks, 2)
        self.offsets, self.numbers = marks[:, 0], marks[:, 1]
        rows = self.entry.samples or 0
        self.block_lines = lines_of_block(rows, len(marks) - 1)
        starts = np.arange(len(marks), dtype=np.int64) * self.block_lines
        starts[-1] = rows
        self.members = unpack_marks(self.entry.entries, 2) if self.entry.entries else np.zeros((1, 2), np.int64)
        self.first_blocks = np.searchsorted(self.offsets[:-1], self.members[:, 1])
        return starts

    def entry_block(self, block: int) -> int:
        if not self.sequential:
            return block
        return int(self.first_blocks[np.searchsorted(self.first_blocks, block, side="right") - 1])

    def stream(self, block: int, stop: int) -> Iterator[bytes]:
        if self.sequential:
            yield from self._decompressed(block)
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

    def _decompressed(self, block: int) -> Iterator[bytes]:
        """Yields the blocks from `block` on, from the last member that begins before them."""
        member = int(np.searchsorted(self.members[:, 1], self.offsets[block], side="right")) - 1
        start, place = self.members[member].tolist()
        # `place` is that of what is held.
        pieces, held = pieces_of(self.file, self.entry.size, start=start), bytearray()
        for first, stop in pairwise(self.offsets[block:].tolist()):
            while place + len(held) < stop and (piece := next(pieces, b"")):
                passed = min(len(held), max(0, first - place))
                del held[:passed]
                held += piece  # in place: a line may be of many pieces
                place += passed
            yield bytes(memoryview(held)[max(0, first - place) : stop - place])

    def opened(self, block: bytes) -> list[tuple[int, bytes]]:
        return [(number, line) for number, line in enumerate(block.split(b"\n")) if line.strip()]

    def sample(self, block: list[tuple[int, bytes]], index: int, row: int) -> Sample:
        if index >= len(block):
            raise BrokenTask(f"{self.where}, row {row} is missing")
        offset, line = block[index]
        return self.parse(line, int(self.numbers[(row - index) // self.block_lines]) + offset + 1)

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
