"""Sketch of row norms, about two bytes each: quantiles over any number of batches to one part in a million.

A key is the upper bits of a norm's float32 pattern; keys sort as norms do. Keys of a batch are stored sorted: their
differences are small and compress well.
"""

import base64
import binascii
import zlib
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, UInt32

DROPPED_BITS = 3
"""Low bits that a key lacks: a key spans 2**-20 of its norm or less, and its middle is off by half of that."""
WAITING_KEYS = 1 << 20
"""Keys that a tally collects before it sorts them in; as many as it has distinct keys, if those are more."""
_LARGEST = float(np.finfo(np.float32).max)


def keys_of(norms: Float[np.ndarray, "R"]) -> UInt32[np.ndarray, "R"]:
    """Returns the sorted keys of finite norms; norms beyond the range of float32 count as its largest value."""
    patterns = np.minimum(norms, _LARGEST).astype(np.float32).view(np.uint32)
    return np.sort(patterns >> DROPPED_BITS)


def to_text(keys: UInt32[np.ndarray, "R"]) -> str:
    """Returns sorted keys as text for a JSON record."""
    deltas = np.diff(keys, prepend=np.uint32(0)).astype("<u4")
    # All first bytes, then all second ones: the upper planes are nearly all zeros.
    planes = np.ascontiguousarray(deltas.view(np.uint8).reshape(-1, 4).T)
    return base64.b64encode(zlib.compress(planes.data, 1)).decode()


def from_text(text: str, count: int) -> UInt32[np.ndarray, "R"]:
    """Inverse of `to_text`. Raises ValueError where the text is damaged or holds another number of keys."""
    try:
        inflater = zlib.decompressobj()
        planes = inflater.decompress(base64.b64decode(text, validate=True), 4 * count + 1)
    except (binascii.Error, zlib.error) as error:
        raise ValueError(f"norms are damaged ({error})") from error
    if len(planes) != 4 * count or not inflater.eof:
        raise ValueError(f"norms of other than {count} rows")
    deltas = np.ascontiguousarray(np.frombuffer(planes, np.uint8).reshape(4, -1).T).view("<u4")
    keys = np.cumsum(deltas, dtype=np.uint64)
    if count and keys[-1] > 1 << (32 - DROPPED_BITS):
        raise ValueError("norms are out of range")
    return keys.astype(np.uint32)


@dataclass(frozen=True)
class NormCounts:
    """Numbers of rows by key; `keys` are distinct and ascending."""

    keys: UInt32[np.ndarray, "K"]
    counts: Int[np.ndarray, "K"]

    def quantiles(self, shares: tuple[float, ...]) -> list[float]:
        """Returns for each share the smallest norm that this share of rows does not exceed; 0 without rows."""
        if not len(self.keys):
            return [0.0] * len(shares)
        cumulative = np.cumsum(self.counts)
        ranks = np.clip(np.ceil(np.array(shares) * cumulative[-1]), 1, cumulative[-1])
        return _middle(self.keys[np.searchsorted(cumulative, ranks)]).tolist()

    def above(self, norm: float) -> int:
        """Returns the number of rows whose norm is greater."""
        key = keys_of(np.array([norm]))[0]
        return int(self.counts[np.searchsorted(self.keys, key, "right") :].sum())


class NormTally:
    """Counts keys over many batches. Memory grows with the number of distinct keys, some millions at most."""

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
        """Adds the keys that another tally has counted."""
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
    """Returns the counts of both, whose keys may be the same or not."""
    at = np.searchsorted(a.keys, b.keys)
    known = np.zeros(len(at), bool)
    in_range = at < len(a.keys)
    known[in_range] = a.keys[at[in_range]] == b.keys[in_range]
    counts = a.counts.copy()
    counts[at[known]] += b.counts[known]
    new = ~known
    return NormCounts(np.insert(a.keys, at[new], b.keys[new]), np.insert(counts, at[new], b.counts[new]))


def _middle(keys: UInt32[np.ndarray, "K"]) -> Float[np.ndarray, "K"]:
    """Returns the norm in the middle of each key's range."""
    patterns = (keys << DROPPED_BITS) | (keys > 0) * np.uint32(1 << (DROPPED_BITS - 1))
    return patterns.astype(np.uint32).view(np.float32).astype(np.float64)
