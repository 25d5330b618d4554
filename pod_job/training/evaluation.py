"""Measurement of SAEs on rows that they were not trained on, as SAELens' `evals.run_evals` defines it.

N rows, D input width, O output width, F latents, k contexts of a latent.
"""

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from pod_job.formats.records import Count, Record
from pod_job.formats.statistics import outliers
from pod_job.run_folder.layout import is_residual
from pod_job.training.architectures.kinds import decode, encode
from pod_job.training.architectures.parts import Params
from pod_job.training.architectures.shape import SaeShape
from pod_job.training.contexts import Numbers, Top, TopRows, larger, largest_of_documents

LATENT_BYTES = 1 << 28
"""Memory of the latents that are there at a time, about."""
DENSITY_EDGES = tuple(exponent / 2 for exponent in range(-12, 1))
"""Edges of the bins of densities, as powers of 10; the first bin has what is rarer."""


class CrossEntropy(Record, frozen=True):
    """Mean loss (nats) of the tokens after those that count: of the model, with the SAE spliced in, with zeros there.

    `recovered` is the share of the loss between zeros and the model that the SAE keeps.
    """

    tokens: Count
    model: float
    spliced: float
    zeros: float

    @property
    def recovered(self) -> float:
        return (self.zeros - self.spliced) / (self.zeros - self.model)


class SaeEvaluation(Record, frozen=True, kw_only=True):
    """An SAE on held-out rows.

    Attributes:
        mse: |target - output|^2, mean over rows.
        explained_variance: 1 - mse / |target - mean target|^2.
        cosine: of target and output, mean over rows.
        dead: share of latents that were active on no row.
        densities: number of latents by the share of rows that they are active on: never, then in each bin of
            `DENSITY_EDGES`, the first of which begins at 0.
        recovered: share of the loss that is recovered, as in `cross_entropy`.
    """

    name: str
    rows: Count
    latents: Count
    l0: float
    mse: float
    explained_variance: float
    cosine: float
    dead: float
    densities: list[Count]
    cross_entropy: CrossEntropy
    recovered: float

    def __post_init__(self) -> None:
        if len(self.densities) != len(DENSITY_EDGES):
            raise ValueError(f"densities has {len(self.densities)} numbers, and {len(DENSITY_EDGES)} bins")


class EvaluationRecord(Record, frozen=True, kw_only=True):
    """evaluation/record.json: the SAEs of a training run on held-out documents."""

    format: Literal[1]
    model: str
    documents: str
    skipped: Count
    seq_len: Count
    dtype: str
    saes: list[SaeEvaluation]
    versions: dict[str, str]
    measured: str


class Sums(NamedTuple):
    """Sums over the rows that count: of a target [O], of how often latents fire [F], and numbers."""

    rows: Numbers
    active: Numbers
    squared_error: Numbers
    target: Numbers
    squared_target: Numbers
    cosine: Numbers
    fired: Numbers


class RowInputs(NamedTuple):
    """Rows to measure on, with the number of the document that each is of.

    `counted`: those that count; `shift` is subtracted from targets before sums of squares.
    """

    rows: Float[Array, "N D"]
    targets: Float[Array, "N O"]
    counted: Bool[Array, "N"]
    documents: Int[Array, "N"]
    shift: Float[Array, "O"]


@functools.partial(jax.jit, static_argnums=(0, 3))
def measure_rows(shape: SaeShape, params: Params, inputs: RowInputs, k: int) -> tuple[Array, Sums, Top]:
    """Returns the outputs [N, O] of all rows, sums over those that count, and the largest values of each latent."""
    latents = encode(shape, params, inputs.rows)
    output = decode(shape, params, latents, inputs.rows)
    weights = inputs.counted.astype(jnp.float32)
    active = (latents > 0) & inputs.counted[:, None]
    centered = inputs.targets - inputs.shift
    norms = jnp.linalg.norm(inputs.targets, axis=1) * jnp.linalg.norm(output, axis=1)
    fired = jnp.sum(active, axis=0, dtype=jnp.float32)
    sums = Sums(
        rows=jnp.sum(weights),
        active=jnp.sum(fired),
        squared_error=jnp.sum(jnp.sum((inputs.targets - output) ** 2, axis=1) * weights),
        target=jnp.sum(centered * weights[:, None], axis=0),
        squared_target=jnp.sum(jnp.sum(centered**2, axis=1) * weights),
        cosine=jnp.sum(jnp.sum(inputs.targets * output, axis=1) / jnp.maximum(norms, 1e-30) * weights),
        fired=fired,
    )
    return output, sums, largest_of_documents(jnp.where(active, latents, 0.0), inputs.documents, k)


@dataclass
class Measured:
    """Sums so far of an SAE; `loss_sums`: of the model, with the SAE, with zeros, and the tokens they are of."""

    shape: SaeShape
    contexts: int
    totals: Sums | None = None
    loss_sums: np.ndarray = field(default_factory=lambda: np.zeros(4))
    top: Top | None = None

    def add_rows(self, params: Params, inputs: RowInputs, first_row: int) -> Float[Array, "N O"]:
        """Adds rows, numbered from `first_row` on; returns the SAE's outputs."""
        chunk = max(1, min(len(inputs.rows), LATENT_BYTES // (4 * self.shape.latents)))
        outputs = []
        for start in range(0, len(inputs.rows), chunk):
            part = RowInputs(
                *(padded(values[start : start + chunk], chunk) for values in inputs[:4]), shift=inputs.shift
            )
            output, sums, top = measure_rows(self.shape, params, part, self.contexts)
            self._add(sums, top._replace(rows=np.asarray(top.rows, np.int64) + (first_row + start)))
            outputs.append(output)
        return jnp.concatenate(outputs)[: len(inputs.rows)]

    def _add(self, sums: Sums, top: Top) -> None:
        wide = Sums(*(np.asarray(value, np.float64) for value in sums))
        self.totals = wide if self.totals is None else Sums(*(a + b for a, b in zip(self.totals, wide, strict=True)))
        self.top = top if self.top is None else larger(self.top, top, self.contexts)

    def add_losses(self, losses: list[Float[np.ndarray, "B S"]], counted: Bool[np.ndarray, "B S"]) -> None:
        """Adds losses of tokens given those before them: of the model, with the SAE, with zeros; NaN for first tokens.

        The token after one that counts is taken, as in SAELens.
        """
        taken = counted[:, :-1] & np.isfinite(losses[0][:, 1:])
        self.loss_sums += [*(float(loss[:, 1:][taken].sum(dtype=np.float64)) for loss in losses), int(taken.sum())]

    @property
    def top_rows(self) -> TopRows:
        """The rows of the largest values; there must be a row."""
        assert self.top is not None
        assert self.totals is not None
        density = np.asarray(self.totals.fired) / float(self.totals.rows)
        return TopRows(np.asarray(self.top.values), np.asarray(self.top.rows), density)

    def result(self, name: str) -> SaeEvaluation:
        """Returns the evaluation; there must be a row and a token."""
        assert self.totals is not None
        totals, rows, tokens = self.totals, float(self.totals.rows), float(self.loss_sums[3])
        mse = float(totals.squared_error) / rows
        variance = float(totals.squared_target) / rows - float(np.sum((np.asarray(totals.target) / rows) ** 2))
        density = np.asarray(totals.fired) / rows
        cross_entropy = CrossEntropy(int(tokens), *(float(value) / tokens for value in self.loss_sums[:3]))
        return SaeEvaluation(
            name=name,
            rows=int(rows),
            latents=self.shape.latents,
            l0=float(totals.active) / rows,
            mse=mse,
            explained_variance=1.0 - mse / variance,
            cosine=float(totals.cosine) / rows,
            dead=float(np.mean(density == 0)),
            densities=density_counts(density),
            cross_entropy=cross_entropy,
            recovered=cross_entropy.recovered,
        )


def without_sinks(
    values: Mapping[str, Float[Array, "B S _"]], taps: Iterable[str], counted: Bool[np.ndarray, "B S"]
) -> Bool[np.ndarray, "B S"]:
    """Returns the tokens that count and are attention sinks, as in a rows table, in none of the residual taps.

    Training leaves them out; with their norms a hundred times those of others, they would be all of the variance.
    """
    for tap in filter(is_residual, taps):
        norms = np.asarray(jnp.linalg.norm(values[tap].astype(jnp.float32), axis=-1))
        kept = counted.copy()
        kept[counted] = ~outliers(norms[counted])
        counted = kept
    return counted


def padded(values: Array, length: int) -> Array:
    """Returns the values with rows of zeros after them."""
    missing = length - len(values)
    return jnp.pad(values, [(0, missing), *[(0, 0)] * (values.ndim - 1)]) if missing else values


def density_counts(density: Float[np.ndarray, "F"]) -> list[int]:
    """Returns the number of latents that never fire, and of those in each bin of DENSITY_EDGES."""
    exponents = np.log10(density[density > 0])
    counts, _ = np.histogram(np.clip(exponents, DENSITY_EDGES[0], 0.0), DENSITY_EDGES)
    return [int(np.sum(density == 0)), *counts.tolist()]
