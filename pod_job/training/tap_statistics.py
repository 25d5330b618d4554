"""Statistics of a tap's rows, from which an SAE's input scale and first decoder bias follow. NumPy only."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from pod_job.errors import JobError

MEDIAN_STEPS = 100
MEDIAN_TOLERANCE = 1e-6


@dataclass(frozen=True)
class TapStatistics:
    """Measurements of one tap.

    Attributes:
        mean_squared_norm: of the rows.
        center: first decoder bias, in the rows' own units: the geometric median (Bricken et al. 2023; Gao et al. 2024)
            as `measure_tap` gives it, or the mean, which a run's metadata.json has.
    """

    mean_squared_norm: float
    center: Float[np.ndarray, "D"]

    @property
    def scale(self) -> float:
        """Factor that gives rows a mean squared norm of their width (Anthropic, April 2024; SAELens)."""
        return float(np.sqrt(len(self.center) / self.mean_squared_norm))


def measure_tap(rows: Float[np.ndarray, "N D"]) -> TapStatistics:
    """Returns the statistics of a sample of rows; some thousands are enough. Raises JobError if none is finite."""
    rows = np.asarray(rows, np.float32)
    rows = rows[np.isfinite(rows).all(axis=1)]
    power = float(np.mean(np.sum(rows.astype(np.float64) ** 2, axis=1))) if len(rows) else 0.0
    if power == 0.0:
        raise JobError(f"no finite row other than 0 among {len(rows)}: no scale of the input follows from them")
    return TapStatistics(power, geometric_median(rows))


def geometric_median(rows: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "D"]:
    """Returns the point whose distances to the rows have the smallest sum, by Weiszfeld's iteration."""
    point = rows.mean(axis=0)
    for _ in range(MEDIAN_STEPS):
        weights = 1.0 / np.maximum(np.linalg.norm(rows - point, axis=1), 1e-12)
        moved = (weights @ rows) / weights.sum()
        settled = np.linalg.norm(moved - point) <= MEDIAN_TOLERANCE * np.linalg.norm(point)
        point = moved
        if settled:
            break
    return point.astype(np.float32)
