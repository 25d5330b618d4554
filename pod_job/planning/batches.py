"""The plan of work: which samples make which batch, and which feeder does which batches. Pure arithmetic.

A batch's samples depend on the data and the config only; who computes it, on the hosts there are now.
"""

from collections.abc import Sequence


def batch_count(samples: int, save_every_n_samples: int) -> int:
    """Batches are numbered 1 .. batch_count; the last may be short."""
    return -(-samples // save_every_n_samples)


def batch_samples(batch: int, samples: int, save_every_n_samples: int) -> range:
    """Indices of the samples of batch `batch` (from 1)."""
    start = (batch - 1) * save_every_n_samples
    return range(start, min(start + save_every_n_samples, samples))


def deal(pending: Sequence[int], feeders: int) -> list[list[int]]:
    """The pending batches, dealt round robin, so that all feeders advance through the data together."""
    return [list(pending[i::feeders]) for i in range(feeders)]
