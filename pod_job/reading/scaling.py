"""What a trainer takes from a run: scaled vectors without end, by statistics that were stored when the run was made.

A trainer that measures its input first (SAELens' norm estimate, `get_norm_factor` of dictionary_learning) reads
hundreds of batches for one number. It is in metadata.json; rows that the dataset excludes are taken out of it again.
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
    """`scaling(vectors)` is (vectors - mean) * factor in float32, as NumPy, torch or JAX like its input."""

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
    """The scaling under which the dataset's rows have this mean squared norm.

    Args:
        centre: subtract the mean vector first; most sparse autoencoders learn it as their decoder's bias instead.
        mean_squared_norm: by default the width D (Anthropic, SAELens); 1 is that of dictionary_learning.
    """
    count, mean, variance = kept_statistics(dataset)
    if not count:
        raise JobError(f"{dataset!r}: no finite rows, of which a scale could be taken")
    shift = mean if centre else np.zeros_like(mean)
    power = float(np.sum(variance + (mean - shift) ** 2))
    wanted = dataset.shape[1] if mean_squared_norm is None else mean_squared_norm
    return Scaling(shift.astype(np.float32), float(np.sqrt(wanted / power)) if power > 0 else 1.0)


def kept_statistics(dataset: "ActivationDataset") -> tuple[int, Float[np.ndarray, "D"], Float[np.ndarray, "D"]]:
    """Number, mean and variance of the rows that the dataset does not exclude; of the rows, it reads the excluded only.

    From what is stored of all rows, by Chan's formula backwards: float64 leaves ten digits where the excluded rows
    carry all but a millionth of the variance.
    """
    stored = dataset.metadata.statistics[dataset.tap]
    count, mean, variance = stored.count, np.array(stored.mean), np.array(stored.variance)
    parts = [statistics.of(vectors) for vectors in dataset.excluded()]
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
    """Shuffled whole batches [batch_size, D], epoch after epoch, in another order each time; scaled in float32.

    The iterator that SAELens' SAETrainer and dictionary_learning's trainSAE take. Raises JobError where the dataset has
    fewer rows than one batch.
    """
    if len(dataset) < batch_size:
        raise JobError(f"batch_size={batch_size}: more than the {len(dataset)} rows of {dataset!r}")
    epoch = 0
    while True:
        for vectors in dataset.batches(batch_size, seed=seed, epoch=epoch, as_=as_, drop_last=True):
            yield vectors if scaled is None else scaled(vectors)
        epoch += 1
