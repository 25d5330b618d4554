"""Norms of rows, kept in two bytes each: quantiles of any number of batches to one part in a million.

A key is the upper bits of a norm's float32 pattern, which sort as the norms do. Keys of a batch are sorted, so their
differences are small, and what a compressor leaves of them is little.
"""

import base64
import binascii
import zlib
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, UInt32

DROPPED_BITS = 3
"""Of the pattern's 32: a key spans 2**-20 of its norm or less, and its middle is off by half of that at most."""
WAITING_KEYS = 1 << 20
"""Keys that a tally collects before it sorts them in, or as many as it has distinct ones, if these are more."""
_LARGEST = float(np.finfo(np.float32).max)


def keys_of(norms: Float[np.ndarray, "R"]) -> UInt32[np.ndarray, "R"]:
    """The sorted keys of finite norms; those beyond float32 count as its largest."""
    patterns = np.minimum(norms, _LARGEST).astype(np.float32).view(np.uint32)
    return np.sort(patterns >> DROPPED_BITS)


def to_text(keys: UInt32[np.ndarray, "R"]) -> str:
    """Sorted keys for a JSON record."""
    steps = np.diff(keys, prepend=np.uint32(0)).astype("<u4")
    # All first bytes, then all second ones: the upper planes are nearly all zeros.
    planes = np.ascontiguousarray(steps.view(np.uint8).reshape(-1, 4).T)
    return base64.b64encode(zlib.compress(planes.data, 1)).decode()


def from_text(text: str, count: int) -> UInt32[np.ndarray, "R"]:
    """Inverse of `to_text` for so many keys; ValueError where it is not that."""
    try:
        inflater = zlib.decompressobj()
        planes = inflater.decompress(base64.b64decode(text, validate=True), 4 * count + 1)
    except (binascii.Error, zlib.error) as error:
        raise ValueError(f"norms are damaged ({error})") from error
    if len(planes) != 4 * count or not inflater.eof:
        raise ValueError(f"norms of other than {count} rows")
    steps = np.ascontiguousarray(np.frombuffer(planes, np.uint8).reshape(4, -1).T).view("<u4")
    keys = np.cumsum(steps, dtype=np.uint64)
    if count and keys[-1] > 1 << (32 - DROPPED_BITS):
        raise ValueError("norms are out of range")
    return keys.astype(np.uint32)


@dataclass(frozen=True)
class NormCounts:
    """How many rows have each key; `keys` are distinct and ascending."""

    keys: UInt32[np.ndarray, "K"]
    counts: Int[np.ndarray, "K"]

    def quantiles(self, shares: tuple[float, ...]) -> list[float]:
        """For each share the smallest norm that so many of the rows reach or stay below; 0 without rows."""
        if not len(self.keys):
            return [0.0] * len(shares)
        up_to = np.cumsum(self.counts)
        ranks = np.clip(np.ceil(np.array(shares) * up_to[-1]), 1, up_to[-1])
        return _middle(self.keys[np.searchsorted(up_to, ranks)]).tolist()

    def above(self, norm: float) -> int:
        """Rows whose norm is greater."""
        key = keys_of(np.array([norm]))[0]
        return int(self.counts[np.searchsorted(self.keys, key, "right") :].sum())


class NormTally:
    """Counts the keys of many batches; memory goes with the number of distinct keys, some millions at most."""

    def __init__(self) -> None:
        self._counts = NormCounts(np.zeros(0, np.uint32), np.zeros(0, np.int64))
        self._waiting: list[np.ndarray] = []
        self._size = 0

    def add(self, keys: UInt32[np.ndarray, "R"]) -> None:
        self._waiting.append(keys)
        self._size += len(keys)
        if self._size >= max(WAITING_KEYS, len(self._counts.keys)):
            self.counts()

    def join(self, other: "NormTally") -> None:
        """Add what another has added."""
        if len(other._counts.keys):
            self._counts = _joined(self._counts, other._counts)
        for keys in other._waiting:
            self.add(keys)

    def counts(self) -> NormCounts:
        if self._waiting:
            keys, counts = np.unique(np.concatenate(self._waiting), return_counts=True)
            self._counts = _joined(self._counts, NormCounts(keys, counts))
            self._waiting, self._size = [], 0
        return self._counts


def _joined(a: NormCounts, b: NormCounts) -> NormCounts:
    at = np.searchsorted(a.keys, b.keys)
    known = np.zeros(len(at), bool)
    inside = at < len(a.keys)
    known[inside] = a.keys[at[inside]] == b.keys[inside]
    counts = a.counts.copy()
    counts[at[known]] += b.counts[known]
    new = ~known
    return NormCounts(np.insert(a.keys, at[new], b.keys[new]), np.insert(counts, at[new], b.counts[new]))


def _middle(keys: UInt32[np.ndarray, "K"]) -> Float[np.ndarray, "K"]:
    patterns = (keys << DROPPED_BITS) | (keys > 0) * np.uint32(1 << (DROPPED_BITS - 1))
    return patterns.astype(np.uint32).view(np.float32).astype(np.float64)
