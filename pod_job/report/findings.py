"""Findings: facts of a run that are out of the ordinary, in one sentence each, with the fix."""

from collections.abc import Iterator, Sequence
from enum import StrEnum

import msgspec
import numpy as np

from pod_job.formats.rows_table import COMPUTED
from pod_job.report.overview import Overview
from pod_job.report.sample import Measures
from pod_job.report.work import Work
from pod_job.run_folder.parity import ParityRecord

PADDING_HIGH = 0.25
"""Share of padding above which it is a finding."""
WAITED_HIGH = 0.05
"""Share of steps that waited for input above which it is a finding."""
OUTLIERS_HIGH = 0.05
"""Share of outlier rows of a tap above which it is a finding."""
SAME = 0.999
"""Similarity of two taps above which one of them is superfluous."""
SLOW = 0.5
"""Speed of a host, over the median host's, below which it is a finding."""


class Level(StrEnum):
    """Severity of a finding, the worst first."""

    bad = "bad"  # the data are not to be used as they are
    look = "look"  # may be intended
    good = "good"


class Finding(msgspec.Struct, frozen=True):
    """A sentence about a run."""

    level: Level
    text: str


def findings(overview: Overview, measures: Measures | None, work: Work | None) -> list[Finding]:
    """Returns the findings, the worst first."""
    unsorted = [*state_findings(overview), *vector_findings(overview), *tap_findings(measures), *work_findings(work)]
    return sorted(unsorted, key=lambda finding: list(Level).index(finding.level))


def state_findings(overview: Overview) -> Iterator[Finding]:
    described = overview.metadata
    if not described.complete:
        missing, total = len(described.missing), described.total_batches
        yield Finding(Level.bad, f"Unfinished: {missing} of {total} batches are missing. Start the same job again.")
    sound, words = overview.verdict
    if sound is False:
        problems = overview.verified.problems if overview.verified else []
        first = f", the first: {problems[0]}" if problems else ""
        yield Finding(Level.bad, f"verify found {words}{first}. `pod-job verify` lists them with their fixes.")
    elif sound is None:
        yield Finding(Level.look, f"The files are {words}: `pod-job verify` reads them all.")
    else:
        yield Finding(Level.good, "Every file was read from end to end and is what its record says.")
    yield parity_finding(overview.metadata.parity)


def parity_finding(parity: Sequence[ParityRecord]) -> Finding:
    if not parity:
        return Finding(Level.look, "No start compared the model with the float32 reference (parity.samples=0).")
    if failed := [record.attempt for record in parity if not record.passed]:
        return Finding(Level.bad, f"Parity with the reference failed in start {failed[-1]}.")
    errors = [(tap, error, record) for record in parity for tap, error in record.errors.items() if tap not in COMPUTED]
    tap, error, record = max(errors, key=lambda item: item[1].largest)
    limit = (record.limits or {}).get(tap)
    allowed = f", limit {record.limit if limit is None else limit.largest:.2g}"
    single = (
        f" without one row of 50, {error.largest:.2g} with it" if error.usual and error.usual < error.largest else ""
    )
    shown = error.usual if single and error.usual else error.largest
    text = f"largest relative error {shown:.2g}{single} at {tap}{allowed}"
    return Finding(Level.good, f"Parity with {record.reference}: {text}.")


def vector_findings(overview: Overview) -> Iterator[Finding]:
    statistics = overview.metadata.statistics
    if broken := {tap: summary.nonfinite for tap, summary in statistics.items() if summary.nonfinite}:
        counts = ", ".join(f"{count:,} of {tap}" for tap, count in broken.items())
        yield Finding(
            Level.bad, f"Vectors with a NaN or an infinity: {counts}. Leave them out with exclude=['nonfinite']."
        )
    if constant := [tap for tap, summary in statistics.items() if summary.count and not any(summary.variance)]:
        yield Finding(Level.bad, f"All vectors are the same: {', '.join(constant)}.")
    shares = {tap: summary.outlier_share for tap, summary in statistics.items()}
    largest = max(shares, key=lambda tap: shares[tap], default="")
    if shares.get(largest, 0.0) > OUTLIERS_HIGH:
        text = f"{shares[largest]:.1%} of the rows of {largest} are outliers in norm; a few in a thousand are usual."
        yield Finding(Level.look, text)
    elif shares.get(largest, 0.0) > 0:
        text = f"Outlier rows, mostly attention sinks, are at most {shares[largest]:.2%} of a tap."
        yield Finding(Level.good, f"{text} Train without them: exclude=['sink'].")


def tap_findings(measures: Measures | None) -> Iterator[Finding]:
    if measures is None or measures.similarity is None:
        return
    for i, j in np.argwhere(np.triu(measures.similarity > SAME, 1)).tolist():
        first, second = measures.taps[i].tap, measures.taps[j].tap
        yield Finding(Level.look, f"{first} and {second} are the same up to rotation: are both needed?")


def work_findings(work: Work | None) -> Iterator[Finding]:
    if work is None:
        yield Finding(Level.look, "How the work went was not recorded: another version made this run, or a shuffle.")
        return
    if work.padding is not None and work.padding > PADDING_HIGH:
        yield Finding(Level.look, f"{work.padding:.0%} of the computed positions were padding: lower extract.seq_len.")
    if work.waited is not None and work.waited > WAITED_HIGH:
        yield Finding(
            Level.look,
            f"{work.waited:.0%} of the steps waited for prompts to be read and tokenized: give the hosts more cores, "
            "or store the prompts as token ids.",
        )
    totals = {host: float(rate.sum()) for host, rate in work.rates.items()}
    median = float(np.median(list(totals.values()))) if totals else 0.0
    if slow := [host for host, total in totals.items() if len(totals) > 2 and total < SLOW * median]:
        yield Finding(Level.look, f"Hosts {', '.join(slow)} did less than half of what the others did.")
    if work.starts > 1:
        yield Finding(Level.look, f"The work took {work.starts} starts.")
