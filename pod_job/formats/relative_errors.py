"""Errors of vectors, without jax. R rows, D columns, K experts of a token."""

import numpy as np
from jaxtyping import Float

from pod_job.formats.rows_table import COMPUTED

TINY = 1e-30
"""Least norm to divide by, so that a row of zeros agrees with zeros."""


def relative_errors(vectors: Float[np.ndarray, "R D"], truth: Float[np.ndarray, "R D"]) -> Float[np.ndarray, "R"]:
    """Returns the relative L2 error of every row; infinite where a vector is not finite."""
    vectors, truth = vectors.astype(np.float64), truth.astype(np.float64)
    with np.errstate(invalid="ignore"):
        errors = np.linalg.norm(vectors - truth, axis=1) / np.maximum(np.linalg.norm(truth, axis=1), TINY)
    return np.where(np.isfinite(errors), errors, np.inf)


def tap_errors(tap: str, vectors: Float[np.ndarray, "R D"], truth: Float[np.ndarray, "R D"]) -> Float[np.ndarray, "R"]:
    """Returns the error of every row of a tap: the relative one; of expert_ids, the share of experts that differ.

    Of `logprob` and `entropy`, which are compared as taps of width 1, it is the difference in nats.
    """
    if tap in COMPUTED:
        return fact_errors(vectors[:, 0], truth[:, 0])
    if not tap.endswith(".expert_ids"):
        return relative_errors(vectors, truth)
    return 1 - (vectors[:, :, None] == truth[:, None, :]).any(axis=1).mean(axis=1)


def fact_errors(facts: Float[np.ndarray, "R"], truth: Float[np.ndarray, "R"]) -> Float[np.ndarray, "R"]:
    """Returns the differences: 0 where both are NaN, as a first token's log probability is; infinite where one is."""
    errors = np.abs(facts.astype(np.float64) - truth.astype(np.float64))
    return np.where(np.isfinite(errors), errors, np.where(np.isnan(facts) & np.isnan(truth), 0.0, np.inf))
