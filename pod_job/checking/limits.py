"""Limits of a tap's errors: how far the reference's own arithmetic in the run's dtypes is from the reference.

Rounding is amplified differently at each tap: in Qwen2.5-0.5B in bfloat16, transformers itself is off by 0.14 at
`layer_0.z` and by 0.01 in the residual stream. So the reference is computed twice on the same prompts, in float32 and
in the run's dtype, and a tap of the run may err by a factor more than the second pass did.

R rows, D columns.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from pod_job.formats.quantized import from_rows
from pod_job.formats.relative_errors import relative_errors
from pod_job.formats.rows_table import COMPUTED as COLUMNS
from pod_job.run_folder.parity import TapErrors

COMPUTED = TapErrors(median=2.0, largest=4.0)
"""Factor on the second pass's errors: two correct programs round in another order, and single rows differ most."""
STORED = TapErrors(median=1.25, largest=1.5)
"""Factor on the rounding of float32 vectors to the stored dtype, which hardly depends on the program."""
FLOAT32 = TapErrors(median=2e-4, largest=1e-3)
"""Errors that float32 explains, with the approximate functions of accelerators."""
ROWS_FOR_A_SINGLE, SINGLE_ROW = 50, 4.0
"""One row of so many may err by this factor more than the largest limit: a model that makes one vector huge at single
tokens amplifies their rounding by chance, and the second pass may have met none of it. In SmolLM2 in bfloat16 one row
was off by 0.046 where the second pass's largest error was 0.010. A fault shows in more rows, or in the median."""
ROWS_FOR_A_MEDIAN = 8
"""With fewer rows their median is too much a matter of chance to have a limit of its own."""


@dataclass(frozen=True)
class RowRounding:
    """Rows of the reference, and their relative L2 errors: computed in the run's dtype, and only rounded as stored."""

    truth: Float[np.ndarray, "R D"]
    computed: Float[np.ndarray, "R"]
    stored: Float[np.ndarray, "R"]
    tap: str = ""

    @property
    def total(self) -> Float[np.ndarray, "R"]:
        return np.hypot(self.computed, self.stored)


def stored_rounding(truth: Float[np.ndarray, "R D"], dtype: np.dtype, tap: str = "") -> Float[np.ndarray, "R"]:
    """Returns the relative L2 error of every row by rounding it to the dtype in which vectors are stored.

    Zeros of a column by the model, which is stored as it is computed.
    """
    if tap in COLUMNS:
        return np.zeros(len(truth))
    import jax.numpy as jnp  # `verify` without --recompute does without jax

    from pod_job.extraction.quantize import as_stored

    stored = from_rows(np.asarray(as_stored(jnp.asarray(truth), dtype)), truth.shape[1], dtype)
    return relative_errors(np.asarray(stored), truth)


def as_read(tap: str, rows: np.ndarray, widths: Mapping[str, int], dtype: np.dtype) -> np.ndarray:
    """Returns rows of a step's output as they are read later: a column by the model as it is, a tap from `dtype`."""
    return rows if tap in COLUMNS else np.asarray(from_rows(rows, widths[tap], dtype))


def summary(errors: Float[np.ndarray, "R"]) -> TapErrors:
    single = len(errors) // ROWS_FOR_A_SINGLE
    usual = float(np.partition(errors, -1 - single)[-1 - single]) if single else None
    return TapErrors(median=float(np.median(errors)), largest=float(errors.max()), usual=usual)


def limits(rounding: RowRounding) -> TapErrors:
    """Returns the largest median and the largest error of a tap's rows that rounding explains."""
    finite = rounding.computed[np.isfinite(rounding.computed)]  # float16 can overflow
    computed = summary(finite) if len(finite) else TapErrors(median=0.0, largest=0.0)
    stored = summary(rounding.stored)
    largest = COMPUTED.largest * computed.largest + STORED.largest * stored.largest + FLOAT32.largest
    if rounding.tap.endswith(".expert_ids"):  # two experts whose logits are nearly equal: a row may have the other
        largest += 1 / rounding.truth.shape[1]
    median = COMPUTED.median * computed.median + STORED.median * stored.median + FLOAT32.median
    return TapErrors(median=median if len(rounding.stored) >= ROWS_FOR_A_MEDIAN else largest, largest=largest)


def excess(errors: TapErrors, limit: TapErrors) -> float:
    """Returns the larger ratio of an error to its limit: over 1, the tap is too far off."""
    if not np.isfinite(errors.largest):
        return np.inf
    if errors.usual is None:
        return max(errors.median / limit.median, errors.largest / limit.largest)
    return max(
        errors.median / limit.median, errors.usual / limit.largest, errors.largest / (SINGLE_ROW * limit.largest)
    )


def mean_row(
    truth: Float[np.ndarray, "T D"], errors: Float[np.ndarray, " T"]
) -> tuple[Float[np.ndarray, "1 D"], Float[np.ndarray, " 1"]]:
    """Returns the mean of vectors, and the relative error of it that their relative errors come to at most."""
    mean = truth.mean(axis=0, dtype=np.float64).astype(truth.dtype)[None]
    most = float((errors * np.linalg.norm(truth, axis=1)).mean())
    return mean, np.array([most / max(float(np.linalg.norm(mean)), np.finfo(np.float32).tiny)])
