"""Rows and dimensions that stand out, as tables: their tokens, how often they occur, and their text."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from pod_job.checking.consent import Consent
from pod_job.formats.statistics import Summary
from pod_job.reading.dataset import ActivationDataset
from pod_job.report.overview import Overview
from pod_job.report.row_texts import RowText, row_texts
from pod_job.report.sample import Measures

KINDS_SHOWN = 10
REPORTED_DIMENSIONS = 4
TIMES_MEDIAN = 3.0
"""Norm, in medians of the tap, from which a row is shown."""


@dataclass(frozen=True)
class RowKind:
    """Outlier rows of one token, first of a prompt or of its window or elsewhere; and the one with the largest norm.

    Attributes:
        rows: number of rows of this kind.
        row, task_id, position, tap, text: of the largest one.
        times: its norm, in medians of the tap.
    """

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
class OutlierRows:
    """Kinds of outlier rows, the largest norm first; `no_text` is why their text is limited, where it is."""

    kinds: list[RowKind]
    no_text: str | None

    @property
    def groups(self) -> list[tuple[str, list[RowKind]]]:
        """The kinds by place: those of first tokens, attention sinks as a rule, and the others; none is empty."""
        places = {"First token": [kind for kind in self.kinds if kind.first]}
        places |= {"Elsewhere": [kind for kind in self.kinds if not kind.first]}
        return [(place, kinds) for place, kinds in places.items() if kinds]


@dataclass(frozen=True)
class Dimension:
    """A dimension of a tap over all rows; `times` is its root mean square over that of the median dimension."""

    number: int
    times: float
    mean: float
    deviation: float


def outlier_rows(overview: Overview, dataset: ActivationDataset, measures: Measures, consent: Consent) -> OutlierRows:
    """Returns the kinds of sampled rows with the largest norms.

    Args:
        dataset: rows of any tap.
        consent: which inputs of the run may be opened for their text.
    """
    sample, taps = measures.sample, measures.taps
    medians = [max(float(np.nanmedian(tap.norms)), 1e-30) for tap in taps]
    times = np.nan_to_num(np.stack([tap.norms / median for tap, median in zip(taps, medians, strict=True)]), nan=np.inf)
    most = times.max(axis=0)
    in_window = sample.rows.get("window_position", sample.rows["position"])
    places_of: dict[tuple[int, bool], list[int]] = {}
    for place in np.argsort(-most, kind="stable")[: int((most > TIMES_MEDIAN).sum())].tolist():
        kind = int(sample.rows["token_id"][place]), bool(in_window[place] == 0)
        places_of.setdefault(kind, []).append(place)
    shown = dict(list(places_of.items())[:KINDS_SHOWN])
    index = sample.index[[places[0] for places in shown.values()]] if shown else np.zeros(0, np.int64)
    texts, reason = row_texts(overview, dataset, index, consent)
    kinds = [
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
    return OutlierRows(kinds, reason)


def dimension_sizes(summary: Summary) -> Float[np.ndarray, "D"]:
    """Returns the root mean square of every dimension, in units of the median one."""
    sizes = np.sqrt(np.square(summary.mean) + np.array(summary.variance))
    return sizes / max(float(np.median(sizes)), 1e-30)


def outlier_dimensions(overview: Overview) -> dict[str, list[Dimension]]:
    """Returns the largest dimensions of every tap, over all rows."""
    return {tap: largest_dimensions(summary) for tap, summary in overview.metadata.statistics.items()}


def largest_dimensions(summary: Summary) -> list[Dimension]:
    sizes = dimension_sizes(summary)
    deviations = np.sqrt(summary.variance)
    return [
        Dimension(number, float(sizes[number]), summary.mean[number], float(deviations[number]))
        for number in np.argsort(sizes)[::-1][:REPORTED_DIMENSIONS].tolist()
    ]
