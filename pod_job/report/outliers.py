"""Rows and dimensions that stand out, as tables: which tokens they are, how often, and in what text."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from pod_job.formats.statistics import Summary
from pod_job.reading.dataset import ActivationDataset
from pod_job.report.overview import Overview
from pod_job.report.row_texts import RowText, row_texts
from pod_job.report.sample import Sample, TapMeasures

KINDS_SHOWN = 10
DIMENSIONS_SHOWN = 4
TIMES_MEDIAN = 3.0
"""A row is shown from so many times the median norm of its tap."""


@dataclass(frozen=True)
class RowKind:
    """Outlier rows of one token, at the first position or elsewhere: how many, and the one that stands out most."""

    token: str
    first: bool
    rows: int
    row: int
    task_id: str
    position: int
    tap: str
    times: float
    text: RowText


@dataclass(frozen=True)
class Dimension:
    """`times`: its root mean square over that of the median dimension."""

    number: int
    times: float
    mean: float
    deviation: float


def outlier_rows(
    overview: Overview,
    dataset: ActivationDataset,
    sample: Sample,
    taps: Sequence[TapMeasures],
    overrides: Sequence[str],
) -> tuple[list[RowKind], str | None]:
    """The kinds of sampled rows with the largest norms, and why their text is not to be had, where it is not."""
    medians = [max(float(np.nanmedian(tap.norms)), 1e-30) for tap in taps]
    times = np.nan_to_num(np.stack([tap.norms / median for tap, median in zip(taps, medians, strict=True)]), nan=np.inf)
    most = times.max(axis=0)
    kinds: dict[tuple[int, bool], list[int]] = {}
    for place in np.argsort(-most, kind="stable")[: int((most > TIMES_MEDIAN).sum())].tolist():
        kind = int(sample.rows["token_id"][place]), bool(sample.rows["position"][place] == 0)
        kinds.setdefault(kind, []).append(place)
    shown = dict(list(kinds.items())[:KINDS_SHOWN])
    index = sample.index[[places[0] for places in shown.values()]] if shown else np.zeros(0, np.int64)
    texts, reason = row_texts(overview, dataset, index, overrides)
    found = [
        RowKind(
            token=text.token,
            first=first,
            rows=len(places),
            row=int(sample.index[places[0]]),
            task_id=str(sample.rows["task_id"][places[0]]),
            position=int(sample.rows["position"][places[0]]),
            tap=taps[int(times[:, places[0]].argmax())].tap,
            times=float(most[places[0]]),
            text=text,
        )
        for ((_, first), places), text in zip(shown.items(), texts, strict=True)
    ]
    return found, reason


def dimension_size(statistics: Summary) -> Float[np.ndarray, "D"]:
    """Root mean square of each dimension, in units of the median one."""
    size = np.sqrt(np.square(statistics.mean) + np.array(statistics.variance))
    return size / max(float(np.median(size)), 1e-30)


def outlier_dimensions(overview: Overview) -> dict[str, list[Dimension]]:
    """Of each tap the largest dimensions, over all rows."""
    found = {}
    for tap, statistics in overview.metadata.statistics.items():
        times = dimension_size(statistics)
        first = np.argsort(times)[::-1][:DIMENSIONS_SHOWN].tolist()
        found[tap] = [
            Dimension(d, float(times[d]), statistics.mean[d], float(np.sqrt(statistics.variance[d]))) for d in first
        ]
    return found
