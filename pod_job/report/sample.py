"""Which rows of a run are looked at, and what is measured on them, block by block: memory does not grow with runs."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from pod_job.reading.dataset import ActivationDataset

BLOCK_ROWS = 64
"""Rows that lie together are read together; few enough that blocks come from many prompts."""
READ_ROWS = 1024
SPECTRUM_ROWS = 2048
SIMILARITY_ROWS = 1024


@dataclass(frozen=True)
class Sample:
    """`index`: row numbers, ascending. `rows`: their columns and flags. `regular`: which are finite and no sinks."""

    index: Int[np.ndarray, "R"]
    rows: dict[str, Any]
    total: int

    @property
    def regular(self) -> Int[np.ndarray, "_"]:
        return np.flatnonzero(~(self.rows["sink"] | self.rows["nonfinite"]))


@dataclass(frozen=True)
class TapMeasures:
    """Of one tap's sampled rows: norms, then, of regular rows only: `spectrum`, shares of the variance by component,
    largest first, and `gram`, the products of rows with each other, for comparing taps.
    """

    tap: str
    norms: Float[np.ndarray, "R"]
    spectrum: Float[np.ndarray, "K"]
    gram: Float[np.ndarray, "M M"]

    def components(self, share: float) -> int:
        """How many principal components hold this share of the variance."""
        return int(np.searchsorted(np.cumsum(self.spectrum), share - 1e-9)) + 1 if len(self.spectrum) else 0

    @property
    def effective_dimensions(self) -> float:
        """The participation ratio: as many components as would hold all variance in equal parts."""
        return float(1 / np.square(self.spectrum).sum()) if len(self.spectrum) else 0.0


def choose_rows(total: int, wanted: int, seed: int = 0) -> Int[np.ndarray, "R"]:
    """All rows where there are no more than `wanted`; else blocks of BLOCK_ROWS, spread evenly, shifted at random."""
    if total <= wanted:
        return np.arange(total)
    starts = np.linspace(0, total, wanted // BLOCK_ROWS + 1)
    room = np.maximum(np.diff(starts) - BLOCK_ROWS, 0)
    first = (starts[:-1] + np.random.default_rng(seed).random(len(room)) * room).astype(np.int64)
    return np.unique(np.minimum(first[:, None] + np.arange(BLOCK_ROWS), total - 1).ravel())


def take_sample(dataset: ActivationDataset, wanted: int) -> Sample:
    """The same rows for every tap."""
    index = choose_rows(len(dataset), wanted)
    return Sample(index, dataset.rows(index), len(dataset))


def measure_tap(dataset: ActivationDataset, sample: Sample) -> TapMeasures:
    """Reads the tap's sampled rows once."""
    chosen = spread(sample.regular, SPECTRUM_ROWS)
    norms, kept = np.empty(len(sample.index)), np.empty((len(chosen), dataset.shape[1]), np.float32)
    for start, block in blocks(dataset, sample.index):
        stop = start + len(block)
        with np.errstate(over="ignore", invalid="ignore"):
            norms[start:stop] = np.sqrt(np.einsum("rd,rd->r", block, block, dtype=np.float64))
        here = (chosen >= start) & (chosen < stop)
        kept[here] = block[chosen[here] - start]
    kept -= kept.mean(axis=0, dtype=np.float64) if len(kept) else 0
    few = kept[spread(np.arange(len(kept)), SIMILARITY_ROWS)]
    return TapMeasures(dataset.tap, norms, spectrum(kept), few @ few.T)


def blocks(dataset: ActivationDataset, index: np.ndarray) -> Iterator[tuple[int, Float[np.ndarray, "R D"]]]:
    """The rows in float32, READ_ROWS at a time, each with the place of its first."""
    for start in range(0, len(index), READ_ROWS):
        yield start, np.asarray(dataset[index[start : start + READ_ROWS]], np.float32)


def spread(items: Int[np.ndarray, "N"], most: int) -> Int[np.ndarray, "_"]:
    """At most so many of the items, evenly spread."""
    return items[np.unique(np.linspace(0, len(items) - 1, most).astype(int))] if len(items) > most else items


def spectrum(centred: Float[np.ndarray, "M D"]) -> Float[np.ndarray, "K"]:
    """Shares of the variance along the principal components, largest first."""
    if len(centred) < 2:
        return np.zeros(0)
    products = centred.T @ centred if centred.shape[1] < len(centred) else centred @ centred.T
    values = np.maximum(np.linalg.eigvalsh(products.astype(np.float64))[::-1], 0)
    return values / values.sum() if values.sum() > 0 else values


def similarity(taps: list[TapMeasures]) -> Float[np.ndarray, "T T"]:
    """Linear CKA between taps on the same rows, with the unbiased estimator of HSIC (Kornblith and others 2019; Song
    and others 2012): 1 for representations that a rotation and a scale turn into each other, 0 for unrelated ones.
    """
    found = np.ones((len(taps), len(taps)))
    if len(taps[0].gram) < 4:
        return np.full_like(found, np.nan)
    own = [unbiased_hsic(tap.gram, tap.gram) for tap in taps]
    for i in range(len(taps)):
        for j in range(i):
            scale = np.sqrt(max(own[i] * own[j], 1e-30))
            found[i, j] = found[j, i] = np.clip(unbiased_hsic(taps[i].gram, taps[j].gram) / scale, 0, 1)
    return found


def unbiased_hsic(a: Float[np.ndarray, "M M"], b: Float[np.ndarray, "M M"]) -> float:
    n = len(a)
    a, b = (np.where(np.eye(n, dtype=bool), 0, gram).astype(np.float64) for gram in (a, b))
    sums = a.sum(axis=1) @ b.sum(axis=1)
    whole = np.vdot(a, b) + a.sum() * b.sum() / ((n - 1) * (n - 2)) - 2 * sums / (n - 2)
    return float(whole / (n * (n - 3)))
