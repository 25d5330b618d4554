"""The parity gate: before a run computes anything, a few of its prompts are held against the float32 reference."""

from pod_job.config import Dtype

LIMITS = {Dtype.float32: 1e-3, Dtype.float16: 0.1, Dtype.bfloat16: 0.1}
"""Largest relative L2 error of a vector that rounding explains, by the coarsest dtype on its way."""


def limit_of(*dtypes: Dtype) -> float:
    """The limit for a vector that went through these dtypes."""
    return max(LIMITS[dtype] for dtype in dtypes)
