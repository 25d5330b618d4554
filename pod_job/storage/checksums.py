"""What is kept under a name, as size and CRC-32C; that of several contents joined follows without reading them."""

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
    """What is kept under a name: bytes, and the CRC-32C spelled as Cloud Storage does (base64, big-endian)."""

    size: int
    crc32c: str


def checksum(parts: Iterable[Part]) -> Stored:
    """Size and CRC-32C of the joined parts, without joining them."""
    size, crc = 0, 0
    for part in parts:
        if view := memoryview(part).nbytes:
            # google_crc32c takes bytes and arrays but not memoryviews; frombuffer wraps them without a copy.
            crc = google_crc32c.extend(crc, np.frombuffer(part, np.uint8))
            size += view
    return Stored(size, as_text(crc))


def joined(contents: Iterable[Stored]) -> Stored:
    """Size and CRC-32C of the contents one after the other. ValueError where a checksum is not one.

    A CRC is a remainder of polynomials over GF(2): bytes that follow multiply it by a power of x (as zlib's
    crc32_combine does).
    """
    size, crc = 0, 0
    for each in contents:
        crc = _product(_x_to(8 * each.size), crc) ^ _number(each.crc32c)
        size += each.size
    return Stored(size, as_text(crc))


def as_text(crc: int) -> str:
    return base64.b64encode(crc.to_bytes(4, "big")).decode()


def _number(crc32c: str) -> int:
    data = base64.b64decode(crc32c, validate=True)
    if len(data) != 4:
        raise ValueError(f"{crc32c!r} is no CRC-32C")
    return int.from_bytes(data, "big")


def _product(a: int, b: int) -> int:
    """a times b modulo the polynomial."""
    product = 0
    while a:
        if a & _ONE:
            product ^= b
        a = a << 1 & 0xFFFFFFFF
        b = b >> 1 ^ (_POLYNOMIAL if b & 1 else 0)
    return product


@functools.lru_cache(1 << 16)
def _x_to(power: int) -> int:
    """x^power modulo the polynomial, by repeated squaring."""
    result, square = _ONE, _ONE >> 1
    while power:
        if power & 1:
            result = _product(square, result)
        square = _product(square, square)
        power >>= 1
    return result
