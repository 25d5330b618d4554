"""Samples rows of a run and measures them block by block, in memory that does not grow with the run."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from pod_job.reading.dataset import ActivationDataset

BLOCK_ROWS = 64
"""Consecutive rows that are read together; few enough that blocks come from many prompts."""
READ_ROWS = 1024
SPECTRUM_ROWS = 2048
SIMILARITY_ROWS = 1024


@dataclass(frozen=True)
class Sample:
    """Sampled rows of a run: their numbers `index`, ascending, and the columns and flags `rows` of the rows tables.

    `total` is the number of rows in the run.
    """

    index: Int[np.ndarray, "R"]
    rows: dict[str, Any]
    total: int

    @property
    def regular(self) -> Int[np.ndarray, "_"]:
        """Places in `index` of rows that are finite and not attention sinks."""
        return np.flatnonzero(~(self.rows["sink"] | self.rows["nonfinite"]))


@dataclass(frozen=True)
class TapMeasures:
    """Measurements on one tap's sampled rows.

    Attributes:
        norms: of all sampled rows.
        spectrum: of regular rows, shares of the variance by principal component, largest first.
        gram: of SIMILARITY_ROWS regular rows, their products with each other, for comparing taps.
    """

    tap: str
    norms: Float[np.ndarray, "R"]
    spectrum: Float[np.ndarray, "K"]
    gram: Float[np.ndarray, "M M"]

    def components(self, share: float) -> int:
        """Returns how many principal components hold this share of the variance; 0 without a spectrum."""
        return int(np.searchsorted(np.cumsum(self.spectrum), share - 1e-9)) + 1 if len(self.spectrum) else 0

    @property
    def effective_dimensions(self) -> float:
        """Participation ratio of the variances: the number of equal components that would have this spread."""
        return float(1 / np.square(self.spectrum).sum()) if len(self.spectrum) else 0.0


@dataclass(frozen=True)
class Measures:
    """Measurements on the sampled rows of all taps; `similarity` between taps is None where there is one tap."""

    sample: Sample
    taps: list[TapMeasures]
    similarity: Float[np.ndarray, "T T"] | None


def choose_rows(total: int, wanted: int, seed: int = 0) -> Int[np.ndarray, "R"]:
    """Returns all rows, or about `wanted` of them in blocks of BLOCK_ROWS at even distances, shifted at random."""
    if total <= wanted:
        return np.arange(total)
    starts = np.linspace(0, total, wanted // BLOCK_ROWS + 1)
    slack = np.maximum(np.diff(starts) - BLOCK_ROWS, 0)
    first = (starts[:-1] + np.random.default_rng(seed).random(len(slack)) * slack).astype(np.int64)
    return np.unique(np.minimum(first[:, None] + np.arange(BLOCK_ROWS), total - 1).ravel())


def take_sample(dataset: ActivationDataset, wanted: int) -> Sample:
    """Returns about `wanted` rows of a dataset, which are rows of every tap."""
    index = choose_rows(len(dataset), wanted)
    return Sample(index, dataset.rows(index), len(dataset))


def measure_tap(dataset: ActivationDataset, sample: Sample) -> TapMeasures:
    """Reads the tap's sampled rows once and measures them."""
    chosen = spread(sample.regular, SPECTRUM_ROWS)
    norms, regular = np.empty(len(sample.index)), np.empty((len(chosen), dataset.shape[1]), np.float32)
    for start, block in blocks(dataset, sample.index):
        stop = start + len(block)
        with np.errstate(over="ignore", invalid="ignore"):
            norms[start:stop] = np.sqrt(np.einsum("rd,rd->r", block, block, dtype=np.float64))
        in_block = (chosen >= start) & (chosen < stop)
        regular[in_block] = block[chosen[in_block] - start]
    regular -= regular.mean(axis=0, dtype=np.float64) if len(regular) else 0
    few = regular[spread(np.arange(len(regular)), SIMILARITY_ROWS)]
    return TapMeasures(dataset.tap, norms, spectrum(regular), few @ few.T)


def blocks(dataset: ActivationDataset, index: np.ndarray) -> Iterator[tuple[int, Float[np.ndarray, "R D"]]]:
    """Yields the rows in float32, READ_ROWS at a time, with the place of the first of them in `index`."""
    for start in range(0, len(index), READ_ROWS):
        yield start, np.asarray(dataset[index[start : start + READ_ROWS]], np.float32)


def spread(items: Int[np.ndarray, "N"], most: int) -> Int[np.ndarray, "_"]:
    """Returns at most `most` of the items, at even distances."""
    return items[np.unique(np.linspace(0, len(items) - 1, most).astype(int))] if len(items) > most else items


def spectrum(centered: Float[np.ndarray, "M D"]) -> Float[np.ndarray, "K"]:
    """Returns the shares of the variance along the principal components, largest first."""
    if len(centered) < 2:
        return np.zeros(0)
    products = centered.T @ centered if centered.shape[1] < len(centered) else centered @ centered.T
    values = np.maximum(np.linalg.eigvalsh(products.astype(np.float64))[::-1], 0)
    return values / values.sum() if values.sum() > 0 else values


def similarity(taps: list[TapMeasures]) -> Float[np.ndarray, "T T"]:
    """Returns the linear CKA between taps on the same rows, with the unbiased estimator of HSIC.

    1 for representations that a rotation and a scale turn into each other, 0 for unrelated ones, NaN where there are
    fewer than 4 rows (Kornblith et al. 2019; Song et al. 2012).
    """
    alike = np.ones((len(taps), len(taps)))
    if len(taps[0].gram) < 4:
        return np.full_like(alike, np.nan)
    own = [unbiased_hsic(tap.gram, tap.gram) for tap in taps]
    for i in range(len(taps)):
        for j in range(i):
            scale = np.sqrt(max(own[i] * own[j], 1e-30))
            alike[i, j] = alike[j, i] = np.clip(unbiased_hsic(taps[i].gram, taps[j].gram) / scale, 0, 1)
    return alike


def unbiased_hsic(a: Float[np.ndarray, "M M"], b: Float[np.ndarray, "M M"]) -> float:
    n = len(a)
    a, b = (np.where(np.eye(n, dtype=bool), 0, gram).astype(np.float64) for gram in (a, b))
    sums = a.sum(axis=1) @ b.sum(axis=1)
    hsic = np.vdot(a, b) + a.sum() * b.sum() / ((n - 1) * (n - 2)) - 2 * sums / (n - 2)
    return float(hsic / (n * (n - 3)))
