"""Bytes that hosts read of files that can only be read from their start: compressed lines, CSV."""

from collections.abc import Sequence

import numpy as np

WORTH_A_LINE = 1.1
"""A factor above which a plan shows it."""


def read_factor(sizes: Sequence[int], hosts: int) -> float:
    """Returns the bytes that hosts read in all, as a multiple of the files' own.

    `sizes` are of files, or of their parts between the members that can be entered.

    Each host's batches are neighbors: it reads from the start of the file that they begin in. One file that 16 hosts
    share is read 8.5 times, five files for each host 1.1 times.
    """
    ends = np.cumsum([0, *sizes])
    if not ends[-1]:
        return 1.0
    edges = ends[-1] * np.arange(hosts + 1) / hosts
    begun = ends[np.searchsorted(ends, edges[:-1], side="right") - 1]
    return float((edges[1:] - begun).sum() / ends[-1])


def read_line(sizes: Sequence[int], hosts: int) -> str | None:
    """Returns the factor with a fix, for people; None where it is close to 1."""
    factor = read_factor(sizes, hosts)
    if factor <= WORTH_A_LINE:
        return None
    return (
        f"compressed files and CSV can only be read from their start: they are read {factor:.1f} times, since {hosts} "
        f"hosts share {len(sizes)} of them; use {5 * hosts} or more, or gzip files by bgzip, or Parquet, or plain lines"
    )
