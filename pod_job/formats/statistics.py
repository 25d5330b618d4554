"""Statistics of one tap's vectors, gathered in float64 while they are written and merged over batches.

Means and squared deviations are combined with Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for
computing sample variances" (1979), so the result does not depend on how the rows were cut into batches.
Rows with a NaN or an infinity are counted and left out.
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, UInt32

from pod_job.formats.norm_sketch import NormTally, from_text, keys_of, to_text
from pod_job.formats.quantized import Vectors
from pod_job.formats.records import Count, Record

CHUNK_VALUES = 1 << 20
"""Values that are summed directly; chunks are then combined as batches are."""
BLOCK_VALUES = 1 << 17
"""Values converted to float64 at a time: 1 MiB, which fits a core's cache and which OpenBLAS sums in one thread.
OpenBLAS shares 4 MiB among all cores, and writers on 16 of them took 17 times the CPU time."""
QUANTILES = (0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999)
OUTLIER_FACTOR = 10.0
"""A row is an outlier when its norm is above this many medians."""
_NO_KEYS = np.zeros(0, np.uint32)


@dataclass(frozen=True)
class TapStatistics:
    """Statistics of rows, of which `count` are finite.

    Attributes:
        mean, squared_deviations: per dimension; the latter are sums of squares.
        norm_sum, norm_min, norm_max: of the Euclidean norms of rows.
        norm_keys: every row's norm to one part in a million, sorted (`norm_sketch.keys_of`).
    """

    count: int
    nonfinite: int
    mean: Float[np.ndarray, "D"]
    squared_deviations: Float[np.ndarray, "D"]
    norm_sum: float
    norm_min: float
    norm_max: float
    norm_keys: UInt32[np.ndarray, "R"]

    @property
    def mean_squared_norm(self) -> float:
        """Mean over rows of the squared norm; 0 without rows."""
        return float(np.sum(self.mean**2 + self.squared_deviations / max(self.count, 1)))


class StatisticsRecord(Record, frozen=True):
    """Statistics of one tap in a commit record: vectors as little-endian float64 in hex, norms as keys.

    Hex is read seven times faster than base64, which a merge of 100,000 batches notices.
    """

    count: Count
    nonfinite: Count
    mean: str
    squared_deviations: str
    norm_sum: float
    norm_range: tuple[float, float] | None
    norms: str


class Summary(Record, frozen=True):
    """Statistics of one tap in metadata.json: vectors times `scale` have a mean squared norm of the width D."""

    count: Count
    nonfinite: Count
    mean: list[float]
    variance: list[float]
    mean_norm: float
    mean_squared_norm: float
    scale: float
    norm_min: float
    norm_max: float
    norm_quantiles: dict[str, float]
    outlier_share: float


def compute(vectors: Vectors) -> TapStatistics:
    """Returns the statistics of rows [R, D] of any float dtype, at about 0.4 CPU seconds per GB of bfloat16."""
    return measure(vectors)[0]


def measure(vectors: Vectors) -> tuple[TapStatistics, Float[np.ndarray, "R"]]:
    """Returns the statistics, and the norm of every row: infinite or NaN for a row with such a value."""
    rows, width = vectors.shape
    step, block = (max(1, values // max(width, 1)) for values in (CHUNK_VALUES, BLOCK_VALUES))
    wide = np.empty((min(block, rows), width))
    total, norms = _empty(width), np.empty(rows)
    for start in range(0, rows, step):
        chunk, norms[start : start + step] = _chunk_statistics(vectors[start : start + step], wide)
        total = _merged_moments(total, chunk)
    finite = norms[np.isfinite(norms)]
    total = replace(
        total,
        norm_sum=float(finite.sum()),
        norm_min=float(finite.min(initial=np.inf)),
        norm_max=float(finite.max(initial=0.0)),
        norm_keys=keys_of(finite),
    )
    return total, norms


def outliers(norms: Float[np.ndarray, "R"]) -> Bool[np.ndarray, "R"]:
    """Returns the mask of rows whose norm is above OUTLIER_FACTOR medians of the finite norms."""
    finite = norms[np.isfinite(norms)]
    return norms > OUTLIER_FACTOR * np.median(finite) if len(finite) else np.zeros(len(norms), bool)


def merge(a: TapStatistics, b: TapStatistics) -> TapStatistics:
    """Returns the statistics of the rows of both."""
    return replace(_merged_moments(a, b), norm_keys=np.sort(np.concatenate([a.norm_keys, b.norm_keys])))


class Tally:
    """Statistics of many batches, in memory that does not grow with the number of rows."""

    def __init__(self, width: int) -> None:
        self._moments = _empty(width)
        self._norms = NormTally()

    @property
    def width(self) -> int:
        return len(self._moments.mean)

    @property
    def count(self) -> int:
        return self._moments.count

    def add(self, batch: TapStatistics) -> None:
        self._moments = _merged_moments(self._moments, batch)
        self._norms.add(batch.norm_keys)

    def join(self, other: "Tally") -> None:
        """Adds the statistics that another tally has counted."""
        self._moments = _merged_moments(self._moments, other._moments)
        self._norms.join(other._norms)

    def summary(self) -> Summary:
        """Returns what a trainer wants to know."""
        moments, norms = self._moments, self._norms.counts()
        counted, power = max(moments.count, 1), moments.mean_squared_norm
        [median, *quantiles] = norms.quantiles((0.5, *QUANTILES))
        return Summary(
            count=moments.count,
            nonfinite=moments.nonfinite,
            mean=moments.mean.tolist(),
            variance=(moments.squared_deviations / counted).tolist(),
            mean_norm=moments.norm_sum / counted,
            mean_squared_norm=power,
            scale=float(np.sqrt(self.width / power)) if power > 0 else 1.0,
            norm_min=moments.norm_min if moments.count else 0.0,
            norm_max=moments.norm_max,
            norm_quantiles=dict(zip(map(str, QUANTILES), quantiles, strict=True)),
            outlier_share=norms.above(OUTLIER_FACTOR * median) / counted,
        )


def summary(statistics: TapStatistics) -> Summary:
    """Returns `Tally.summary` of one batch."""
    tally = Tally(len(statistics.mean))
    tally.add(statistics)
    return tally.summary()


def _merged_moments(a: TapStatistics, b: TapStatistics) -> TapStatistics:
    """Returns the statistics of the rows of both, without the keys of their norms."""
    count = a.count + b.count
    share = b.count / max(count, 1)
    delta = b.mean - a.mean
    return TapStatistics(
        count=count,
        nonfinite=a.nonfinite + b.nonfinite,
        mean=a.mean + delta * share,
        squared_deviations=a.squared_deviations + b.squared_deviations + delta**2 * (a.count * share),
        norm_sum=a.norm_sum + b.norm_sum,
        norm_min=min(a.norm_min, b.norm_min),
        norm_max=max(a.norm_max, b.norm_max),
        norm_keys=_NO_KEYS,
    )


def to_record(statistics: TapStatistics) -> StatisticsRecord:
    """Returns everything `merge` needs, exactly."""
    return StatisticsRecord(
        count=statistics.count,
        nonfinite=statistics.nonfinite,
        mean=_encoded(statistics.mean),
        squared_deviations=_encoded(statistics.squared_deviations),
        norm_sum=statistics.norm_sum,
        norm_range=(statistics.norm_min, statistics.norm_max) if statistics.count else None,
        norms=to_text(statistics.norm_keys),
    )


def from_record(record: StatisticsRecord) -> TapStatistics:
    """Inverse of `to_record`. ValueError where a text in the record is not one that `to_record` makes."""
    mean, squared_deviations = _decoded(record.mean), _decoded(record.squared_deviations)
    if len(mean) != len(squared_deviations):
        raise ValueError(f"means and deviations of different widths, {len(mean)} and {len(squared_deviations)}")
    lowest, highest = record.norm_range or (np.inf, 0.0)
    return TapStatistics(
        count=record.count,
        nonfinite=record.nonfinite,
        mean=mean,
        squared_deviations=squared_deviations,
        norm_sum=record.norm_sum,
        norm_min=lowest,
        norm_max=highest,
        norm_keys=from_text(record.norms, record.count),
    )


def _empty(width: int) -> TapStatistics:
    zero = np.zeros(width)
    return TapStatistics(0, 0, zero, zero, 0.0, np.inf, 0.0, _NO_KEYS)


def _chunk_statistics(chunk: Vectors, wide: np.ndarray) -> tuple[TapStatistics, np.ndarray]:
    """Returns the statistics without those of norms, and the norms; `wide` is scratch memory that fits a cache."""
    count, width = chunk.shape
    sums, square_sums, squared_norms = np.zeros(width), np.zeros(width), np.empty(count)
    ones, of_width = np.ones(len(wide)), np.ones(width)
    with np.errstate(invalid="ignore", over="ignore"):
        for start in range(0, count, len(wide)):
            # Through float32, which holds every value: ml_dtypes converts to it several times faster than to float64.
            block = np.asarray(chunk[start : start + len(wide)], np.float32)
            values = wide[: len(block)]
            values[:] = block
            # Products with a vector of ones are sums at the speed of BLAS.
            sums += ones[: len(block)] @ values
            np.multiply(values, values, out=values)
            square_sums += ones[: len(block)] @ values
            np.matmul(values, of_width, out=squared_norms[start : start + len(block)])
    finite = np.isfinite(squared_norms)
    if not finite.all():
        finite_rows, _ = _chunk_statistics(chunk[finite], wide)
        return replace(finite_rows, nonfinite=count - finite_rows.count), np.sqrt(squared_norms)
    mean = sums / max(count, 1)
    deviations = square_sums - count * mean**2
    # Where the mean dwarfs the spread, the difference has lost its digits; those few columns are summed again.
    lost = np.flatnonzero(deviations < 1e-6 * square_sums)
    if len(lost):
        again = np.asarray(chunk, np.float32)[:, lost].astype(np.float64)
        deviations[lost] = np.square(again - mean[lost]).sum(axis=0)
    return replace(_empty(width), count=count, mean=mean, squared_deviations=deviations), np.sqrt(squared_norms)


def _encoded(vector: np.ndarray) -> str:
    return vector.astype("<f8").tobytes().hex()


def _decoded(text: str) -> np.ndarray:
    return np.frombuffer(bytes.fromhex(text), "<f8")
