"""Content of files, compressed or not, in pieces; gzip files from where one of their members begins."""

import io
import zlib
from collections.abc import Callable, Iterator

import pyarrow as pa

from pod_job.errors import first_line
from pod_job.prompts.sources.places import DataFile, RangedFile, unreadable
from pod_job.storage.checksums import RunningChecksum

CODECS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
MAGIC = {".gz": b"\x1f\x8b", ".zst": b"\x28\xb5\x2f\xfd"}
"""Bytes with which a compressed file begins; no text does."""
PIECE_BYTES = 2 << 20
FED_BYTES = 128 << 10
"""Compressed bytes that are fed to zlib at a time: it copies what follows the end of a member."""


def codec_of(url: str) -> str | None:
    """Returns the compression of a file by its name; None where it is not compressed."""
    return next((codec for suffix, codec in CODECS.items() if url.lower().endswith(suffix)), None)


def check_plain(url: str, start: bytes) -> None:
    """Raises JobError for a file that begins as a compressed one, though its name does not say so."""
    if codec := next((ending for ending, magic in MAGIC.items() if start.startswith(magic)), None):
        raise unreadable(url, f"it is compressed; let its name end in {codec}")


Note = Callable[[int, int], None]
"""Takes note of a member of a compressed file: where it begins in the file, and in its content."""


def pieces_of(
    file: DataFile, size: int, checksum: RunningChecksum | None = None, start: int = 0, note: Note | None = None
) -> Iterator[bytes]:
    """Yields the content of a file in pieces, decompressed. JobError for a compressed file that is cut or damaged.

    Args:
        start: where in the file a member begins from which it is read.
        note: called for each member.
    """
    raw = ChecksummedFile(file, size, checksum)
    raw.seek(start)
    if codec_of(file.url) is not None:
        yield from decompressed(raw, file.url, note)
        return
    while piece := raw.read(PIECE_BYTES):
        yield piece


def decompressed(raw: RangedFile, url: str, note: Note | None = None) -> Iterator[bytes]:
    """Yields the content of a compressed file, and reads that to its end. JobError where it is cut or damaged."""
    codec = codec_of(url)
    try:
        if raw.size == 0:
            raise OSError("it is empty")
        if codec == "gzip":
            yield from gunzipped(raw, url, note)
            return
        buffered = io.BufferedReader(raw, PIECE_BYTES)
        stream = pa.CompressedInputStream(pa.PythonFile(buffered, "r"), codec)
        while piece := stream.read(PIECE_BYTES):
            yield piece
        buffered.read()  # what follows the compressed content counts too
    except (OSError, pa.ArrowInvalid, zlib.error) as error:
        raise unreadable(url, f"cut short or damaged: {first_line(error)}; copy it again") from error


def gunzipped(raw: RangedFile, url: str, note: Note | None = None) -> Iterator[bytes]:
    """Yields the content of a gzip file from where a member begins. OSError, zlib.error: it is cut, or damaged."""
    place, content, fed, first = raw.tell(), 0, b"", True
    while fed := fed or raw.read(FED_BYTES):
        if first and not MAGIC[".gz"].startswith(fed[:2]):
            raise unreadable(url, "it is not compressed by gzip, as its name says; name it by what it is")
        body = fed if first else fed.lstrip(b"\0")  # padding, which tapes and some writers leave
        place, fed, first = place + len(fed) - len(body), body, False
        if not fed:
            continue
        if note is not None:
            note(place, content)
        member = zlib.decompressobj(wbits=31)
        while not member.eof:
            piece = member.decompress(fed, PIECE_BYTES) if fed else member.flush()
            left = member.unused_data if member.eof else member.unconsumed_tail
            if not (fed or piece or member.eof):
                raise OSError("it ends within a member")
            place, content = place + len(fed) - len(left), content + len(piece)
            fed = left or (b"" if member.eof else raw.read(FED_BYTES))
            if piece:
                yield piece


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
