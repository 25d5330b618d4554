"""Size and CRC-32C of stored content; those of several contents joined follow without reading them."""

import base64
import functools
from collections.abc import Iterable
from dataclasses import dataclass

import google_crc32c
import numpy as np
from jaxtyping import UInt32

Part = bytes | memoryview
MARK_BYTES = 64 << 10
"""Distance of the marks in content, by which a part of it can be checked."""
WHOLE_BYTES = 1 << 20
"""Content of at most this size is checked as one and needs no marks."""
_POLYNOMIAL = 0x82F63B78  # Castagnoli's, bits reversed: the highest bit of a number is the coefficient of x^0
_ONE = 1 << 31


@dataclass(frozen=True)
class Stored:
    """Description of the content under a name: size in bytes, and CRC-32C as Cloud Storage writes it (base64)."""

    size: int
    crc32c: str


class RunningChecksum:
    """Size and CRC-32C of content that passes in pieces."""

    def __init__(self) -> None:
        self._size, self._crc = 0, 0

    def update(self, piece: Part) -> None:
        """Adds the next piece of the content."""
        if size := memoryview(piece).nbytes:
            # google_crc32c takes bytes and arrays but not memoryviews; frombuffer wraps them without a copy.
            self._crc = google_crc32c.extend(self._crc, np.frombuffer(piece, np.uint8))
            self._size += size

    @property
    def stored(self) -> Stored:
        return Stored(self._size, as_text(self._crc))


def checksum(parts: Iterable[Part]) -> Stored:
    """Returns size and CRC-32C of the joined parts, without joining them."""
    running = RunningChecksum()
    for part in parts:
        running.update(part)
    return running.stored


def marked(parts: Iterable[Part]) -> tuple[Stored, UInt32[np.ndarray, " n"]]:
    """Returns size and CRC-32C of the joined parts, and marks: the CRC-32C up to every MARK_BYTES, and of all.

    Between two marks content can be checked by itself: continued from the first mark, its CRC-32C is the second.
    """
    marks, crc, size = [], 0, 0
    for part in parts:
        rest = np.frombuffer(part, np.uint8)
        while len(rest):
            piece = rest[: MARK_BYTES - size % MARK_BYTES]
            crc, size, rest = google_crc32c.extend(crc, piece), size + len(piece), rest[len(piece) :]
            if size % MARK_BYTES == 0:
                marks.append(crc)
    if not marks or size % MARK_BYTES:
        marks.append(crc)
    return Stored(size, as_text(crc)), np.array(marks, np.uint32)


def text_of_marks(marks: UInt32[np.ndarray, " n"]) -> str:
    """Returns marks as base64 of little-endian numbers."""
    return base64.b64encode(marks.astype("<u4").tobytes()).decode()


def marks_of_text(text: str) -> UInt32[np.ndarray, " n"]:
    """Returns the marks that `text_of_marks` wrote; none where the text is damaged."""
    try:
        return np.frombuffer(base64.b64decode(text, validate=True), "<u4").astype(np.uint32)
    except ValueError:
        return np.zeros(0, np.uint32)


def extended(crc: int, pieces: Iterable[np.ndarray]) -> int:
    """Returns the CRC-32C of content that has this one before the pieces."""
    for piece in pieces:
        crc = google_crc32c.extend(crc, piece) if piece.size else crc
    return crc


def joined(contents: Iterable[Stored]) -> Stored:
    """Returns size and CRC-32C of the contents one after the other.

    A CRC is a remainder of polynomials over GF(2): bytes that follow multiply it by a power of x (as zlib's
    crc32_combine does).

    Raises:
        ValueError: a text is not a CRC-32C in base64.
    """
    size, crc = 0, 0
    for content in contents:
        crc = _product(_x_to(8 * content.size), crc) ^ number_of(content.crc32c)
        size += content.size
    return Stored(size, as_text(crc))


def as_text(crc: int) -> str:
    """Returns a CRC-32C in base64, big-endian."""
    return base64.b64encode(crc.to_bytes(4, "big")).decode()


def number_of(crc32c: str) -> int:
    """Returns a CRC-32C in base64 as a number; ValueError for another text."""
    data = base64.b64decode(crc32c, validate=True)
    if len(data) != 4:
        raise ValueError(f"{crc32c!r} is not a CRC-32C")
    return int.from_bytes(data, "big")


def _product(a: int, b: int) -> int:
    """Returns a times b modulo the polynomial."""
    product = 0
    while a:
        if a & _ONE:
            product ^= b
        a = a << 1 & 0xFFFFFFFF
        b = b >> 1 ^ (_POLYNOMIAL if b & 1 else 0)
    return product


@functools.lru_cache(1 << 16)
def _x_to(power: int) -> int:
    """Returns x^power modulo the polynomial, by repeated squaring."""
    result, square = _ONE, _ONE >> 1
    while power:
        if power & 1:
            result = _product(square, result)
        square = _product(square, square)
        power >>= 1
    return result
