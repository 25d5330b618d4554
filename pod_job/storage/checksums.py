"""Size and CRC-32C of stored content; those of several contents joined follow without reading them."""

import base64
import functools
from collections.abc import Iterable
from dataclasses import dataclass

import google_crc32c
import numpy as np

Part = bytes | memoryview
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


def joined(contents: Iterable[Stored]) -> Stored:
    """Returns size and CRC-32C of the contents one after the other.

    A CRC is a remainder of polynomials over GF(2): bytes that follow multiply it by a power of x (as zlib's
    crc32_combine does).

    Raises:
        ValueError: a text is not a CRC-32C in base64.
    """
    size, crc = 0, 0
    for content in contents:
        crc = _product(_x_to(8 * content.size), crc) ^ _number(content.crc32c)
        size += content.size
    return Stored(size, as_text(crc))


def as_text(crc: int) -> str:
    """Returns a CRC-32C in base64, big-endian."""
    return base64.b64encode(crc.to_bytes(4, "big")).decode()


def _number(crc32c: str) -> int:
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
