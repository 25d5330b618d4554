"""RowSource: numbered rows of bytes; JoinedRows: rows whose bytes come from several sources, one after the other."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, UInt8


@runtime_checkable  # so that tests can check annotations while they run
class RowSource(Protocol):
    """Numbered rows of `row_bytes` bytes each.

    `reads_in_flight` is how many concurrent reads are worth their memory.
    """

    row_bytes: int
    reads_in_flight: int

    def __len__(self) -> int: ...

    def read(
        self, start: int, stop: int, out: UInt8[np.ndarray, "R bytes"] | None = None
    ) -> UInt8[np.ndarray, "R bytes"]:
        """Returns rows [start, stop), in `out` where given."""
        ...

    def gather(self, index: Int[np.ndarray, "R"]) -> UInt8[np.ndarray, "R bytes"]:
        """Returns the rows with these numbers, in this order; all must be in range."""
        ...

    def check_present(self, start: int, stop: int) -> None:
        """Raises JobError where a file that holds rows [start, stop) is missing or too short; reads no rows."""
        ...


class JoinedRows:
    """Rows that are row i of every source, side by side: values and scales of eight bits, or several taps of a run."""

    def __init__(self, sources: Sequence[RowSource]) -> None:
        self._sources = list(sources)
        self.row_bytes = sum(source.row_bytes for source in sources)
        self.reads_in_flight = sources[0].reads_in_flight

    def __len__(self) -> int:
        return len(self._sources[0])

    def read(
        self, start: int, stop: int, out: UInt8[np.ndarray, "R bytes"] | None = None
    ) -> UInt8[np.ndarray, "R bytes"]:
        out = np.empty((stop - start, self.row_bytes), np.uint8) if out is None else out
        return self._join([source.read(start, stop) for source in self._sources], out)

    def gather(self, index: Int[np.ndarray, "R"]) -> UInt8[np.ndarray, "R bytes"]:
        out = np.empty((len(index), self.row_bytes), np.uint8)
        return self._join([source.gather(index) for source in self._sources], out)

    def check_present(self, start: int, stop: int) -> None:
        for source in self._sources:
            source.check_present(start, stop)

    def _join(self, parts: Sequence[np.ndarray], out: np.ndarray) -> np.ndarray:
        at = 0
        for part in parts:
            out[:, at : at + part.shape[1]] = part
            at += part.shape[1]
        return out
