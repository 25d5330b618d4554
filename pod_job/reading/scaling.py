"""Scaled batches without end for trainers, by statistics that were stored when the run was made.

A trainer that measures its input first (SAELens' norm estimate, `get_norm_factor` of dictionary_learning) reads
hundreds of batches for one number. That number follows from metadata.json; the excluded rows are subtracted from it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from pod_job.errors import JobError
from pod_job.formats import statistics

if TYPE_CHECKING:
    from pod_job.reading.arrays import Kind
    from pod_job.reading.dataset import ActivationDataset


@dataclass(frozen=True)
class Scaling:
    """A scaling to call: it returns (vectors - mean) * factor in float32, as the NumPy, torch or JAX array it got."""

    mean: Float[np.ndarray, "D"]
    factor: float

    def __call__(self, vectors: Any) -> Any:
        if isinstance(vectors, np.ndarray):
            return (vectors.astype(np.float32) - self.mean) * np.float32(self.factor)
        if hasattr(vectors, "new_tensor"):
            single = vectors.float()
            return (single - single.new_tensor(self.mean)) * self.factor
        return (vectors.astype(np.float32) - self.mean) * self.factor


def scaling(dataset: "ActivationDataset", *, centre: bool = False, mean_squared_norm: float | None = None) -> Scaling:
    """Returns the scaling under which the dataset's rows have this mean squared norm.

    Args:
        centre: subtract the mean vector first; most sparse autoencoders learn it as their decoder's bias instead.
        mean_squared_norm: by default the width D (Anthropic, SAELens); 1 is that of dictionary_learning.
    Raises:
        JobError: the dataset has no finite row.
    """
    count, mean, variance = kept_statistics(dataset)
    if not count:
        raise JobError(f"{dataset!r}: has no finite rows to take a scale from")
    shift = mean if centre else np.zeros_like(mean)
    power = float(np.sum(variance + (mean - shift) ** 2))
    wanted = dataset.shape[1] if mean_squared_norm is None else mean_squared_norm
    return Scaling(shift.astype(np.float32), float(np.sqrt(wanted / power)) if power > 0 else 1.0)


def kept_statistics(dataset: "ActivationDataset") -> tuple[int, Float[np.ndarray, "D"], Float[np.ndarray, "D"]]:
    """Returns number, mean and variance of the rows that the dataset does not exclude; reads only the excluded rows.

    The statistics of the excluded rows are subtracted from the stored ones of all rows, by Chan's formula backwards:
    float64 leaves ten digits where the excluded rows carry all but a millionth of the variance.
    """
    stored = dataset.metadata.statistics[dataset.tap]
    count, mean, variance = stored.count, np.array(stored.mean), np.array(stored.variance)
    parts = [statistics.compute(vectors) for vectors in dataset.excluded()]
    if not parts:
        return count, mean, variance
    out = reduce(statistics.merge, parts)
    left = count - out.count
    if not left:
        return 0, np.zeros_like(mean), np.zeros_like(variance)
    kept_mean = (count * mean - out.count * out.mean) / left
    squares = count * variance - out.squared_deviations - (out.mean - kept_mean) ** 2 * (left * out.count / count)
    return left, kept_mean, np.maximum(squares, 0.0) / left


def endless(
    dataset: "ActivationDataset",
    batch_size: int,
    *,
    seed: int = 0,
    scaled: Scaling | None = None,
    as_: "Kind" = "torch",
) -> Iterator[Any]:
    """Yields shuffled full batches [batch_size, D], epoch after epoch in another order; scaled in float32 where asked.

    SAELens' SAETrainer and dictionary_learning's trainSAE take this iterator.

    Raises:
        JobError: the dataset has fewer rows than one batch.
    """
    if len(dataset) < batch_size:
        raise JobError(f"batch_size={batch_size}: more than the {len(dataset)} rows of {dataset!r}")
    epoch = 0
    while True:
        for vectors in dataset.batches(batch_size, seed=seed, epoch=epoch, as_=as_, drop_last=True):
            yield vectors if scaled is None else scaled(vectors)
        epoch += 1
