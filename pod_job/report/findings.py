"""What a person should know first about a run: what is out of the ordinary, in one sentence each, with what to do."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from pod_job.report.overview import Overview
from pod_job.report.sample import TapMeasures
from pod_job.report.work import Work
from pod_job.run_folder.parity import ParityRecord

PADDING_HIGH = 0.25
OUTLIERS_HIGH = 0.05
SAME = 0.999
SLOW = 0.5
"""Of the median host's speed."""


@dataclass(frozen=True)
class Finding:
    """`level`: `bad` (the data are not to be used as they are), `look` (may be meant) or `good`."""

    level: str
    text: str


def findings(
    overview: Overview, taps: Sequence[TapMeasures], alike: Float[np.ndarray, "T T"] | None, work: Work | None
) -> list[Finding]:
    """The worst first."""
    found = [*of_state(overview), *of_vectors(overview), *of_similarity(taps, alike), *of_work(work)]
    order = ("bad", "look", "good")
    return sorted(found, key=lambda finding: order.index(finding.level))


def of_state(overview: Overview) -> Iterator[Finding]:
    described = overview.metadata
    if not described.complete:
        missing, total = len(described.missing), described.total_batches
        yield Finding("bad", f"Unfinished: {missing} of {total} batches are missing. Start the same job again.")
    sound, words = overview.verdict
    if sound is False:
        yield Finding("bad", f"verify found {words}. Run `pod-job verify` and see what it names.")
    elif sound is None:
        yield Finding("look", f"The files are {words}: `pod-job verify` reads them all.")
    else:
        yield Finding("good", "Every file was read from end to end and is what its record says.")
    yield from of_parity(overview.metadata.parity)


def of_parity(parity: Sequence[ParityRecord]) -> Iterator[Finding]:
    if not parity:
        yield Finding("look", "No start compared the model with the float32 reference (parity.samples=0).")
    elif failed := [each.attempt for each in parity if not each.passed]:
        yield Finding("bad", f"Parity with the reference failed in start {failed[-1]}.")
    else:
        worst = max(error.largest for each in parity for error in each.errors.values())
        limit = min(each.limit for each in parity)
        yield Finding(
            "good", f"Parity with {parity[-1].reference}: largest relative error {worst:.2g}, limit {limit:g}."
        )


def of_vectors(overview: Overview) -> Iterator[Finding]:
    statistics = overview.metadata.statistics
    if broken := {tap: each.nonfinite for tap, each in statistics.items() if each.nonfinite}:
        named = ", ".join(f"{count:,} of {tap}" for tap, count in broken.items())
        yield Finding("bad", f"Vectors with a NaN or an infinity: {named}. Leave them out with exclude=['nonfinite'].")
    if silent := [tap for tap, each in statistics.items() if each.count and not any(each.variance)]:
        yield Finding("bad", f"All vectors are the same: {', '.join(silent)}.")
    shares = {tap: each.outlier_share for tap, each in statistics.items()}
    if shares and max(shares.values()) > OUTLIERS_HIGH:
        tap = max(shares, key=lambda tap: shares[tap])
        yield Finding(
            "look", f"{shares[tap]:.1%} of the rows of {tap} are outliers in norm; a few in a thousand are usual."
        )
    elif shares and max(shares.values()) > 0:
        yield Finding(
            "good",
            f"Outlier rows, mostly attention sinks, are at most {max(shares.values()):.2%} of a tap. "
            "Train without them: exclude=['sink'].",
        )


def of_similarity(taps: Sequence[TapMeasures], alike: Float[np.ndarray, "T T"] | None) -> Iterator[Finding]:
    if alike is None:
        return
    for i, j in np.argwhere(np.triu(alike > SAME, 1)).tolist():
        yield Finding("look", f"{taps[i].tap} and {taps[j].tap} are the same up to rotation: are both needed?")


def of_work(work: Work | None) -> Iterator[Finding]:
    if work is None:
        yield Finding("look", "How the work went was not recorded: another version made this run, or a shuffle.")
        return
    if work.padding is not None and work.padding > PADDING_HIGH:
        yield Finding("look", f"{work.padding:.0%} of the computed positions were padding: lower extract.seq_len.")
    totals = {host: float(rate.sum()) for host, rate in work.rates.items()}
    usual = float(np.median(list(totals.values()))) if totals else 0.0
    if slow := [host for host, total in totals.items() if len(totals) > 2 and total < SLOW * usual]:
        yield Finding("look", f"Hosts {slow} did less than half of what the others did.")
    if work.starts > 1:
        yield Finding("look", f"The work took {work.starts} starts.")
