"""From a run folder to the page and its pictures: samples rows, measures them, draws, fills the template."""

# pyright: reportMissingImports=false
# matplotlib comes with the extra `report`.
import base64
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
import msgspec
from jinja2 import Environment, StrictUndefined
from matplotlib.figure import Figure

from pod_job import __version__
from pod_job.progress import Progress, no_progress
from pod_job.report import figures
from pod_job.report.findings import Finding, findings
from pod_job.report.outliers import outlier_dimensions, outlier_rows
from pod_job.report.overview import Overview, open_tap
from pod_job.report.sample import Sample, TapMeasures, measure_tap, similarity, take_sample
from pod_job.report.work import Work, read_work

TEMPLATE = Path(__file__).parent / "page.html.j2"
DPI = 150


@dataclass(frozen=True)
class Report:
    """The page, its pictures as PNG by name, and what it says as JSON values."""

    html: str
    pictures: dict[str, bytes]
    facts: dict[str, Any]


def make_report(
    overview: Overview, rows: int, overrides: Sequence[str] = (), progress: Progress = no_progress
) -> Report:
    """The report on at most so many sampled rows; memory is bounded by these, one tap at a time."""
    described = overview.metadata
    work = read_work(overview)
    sample, taps, alike, kinds, reason = None, [], None, [], None
    if described.rows:
        first = open_tap(overview, described.taps[0])
        sample = take_sample(first, rows)
        names = described.taps
        taps = [measure_tap(open_tap(overview, tap), sample) for tap in progress(names, len(names), "taps")]
        alike = similarity(taps) if len(taps) > 1 else None
        kinds, reason = outlier_rows(overview, first, sample, taps, overrides)
    judged = findings(overview, taps, alike, work)
    with matplotlib.rc_context(figures.STYLE):
        drawn = draw(overview, sample, taps, alike, work)
        pictures = {name: encoded(figure, "png") for name, figure in drawn.items()}
        images = {name: data_url(encoded(figure, "svg")) for name, figure in drawn.items()}
    filled = {
        "overview": overview,
        "described": described,
        "identity": msgspec.to_builtins(overview.identity),
        "sample": sample,
        "taps": taps,
        "alike": alike,
        "kinds": kinds,
        "no_text": reason,
        "dimensions": figures.some(list(outlier_dimensions(overview).items())),
        "work": work,
        "findings": judged,
        "images": images,
        "version": __version__,
        "bytes": sum(file.size for file in described.batches),
    }
    return Report(render(filled), pictures, facts(overview, sample, taps, work, judged))


def draw(
    overview: Overview, sample: Sample | None, taps: list[TapMeasures], alike: Any, work: Work | None
) -> dict[str, Figure]:
    """The figures there is something to show in, by name."""
    found: dict[str, Figure] = {}
    if sample is not None:
        statistics = overview.metadata.statistics
        found["norms_by_position"] = figures.norms_by_position(taps, sample)
        found["norm_quantiles"] = figures.norm_quantiles(statistics)
        found["dimension_sizes"] = figures.dimension_sizes(statistics)
        if any(len(tap.spectrum) for tap in taps):
            found["variance_spectrum"] = figures.variance_spectrum(taps)
        if alike is not None:
            found["tap_similarity"] = figures.tap_similarity([tap.tap for tap in taps], alike)
        found["coverage"] = figures.coverage(sample)
    if work is not None and work.rates:
        found["throughput"] = figures.throughput(work)
    return found


def encoded(figure: Figure, kind: str) -> bytes:
    """Without a date: the same run gives the same bytes."""
    file = BytesIO()
    figure.savefig(file, format=kind, dpi=DPI, metadata={"Date": None} if kind == "svg" else None)
    return file.getvalue()


def data_url(svg: bytes) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"


def render(filled: dict[str, Any]) -> str:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"short": short, "duration": duration, "share": lambda value: f"{value:.2%}"}
    return environment.from_string(TEMPLATE.read_text()).render(filled)


def short(value: float | int) -> str:
    """1,234 or 12.3 or 0.0123; 1.2 million."""
    for size, name in ((1e9, " billion"), (1e6, " million")):
        if abs(value) >= size:
            return f"{value / size:,.2f}{name}"
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.3g}"


def duration(seconds: float | int) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def facts(
    overview: Overview, sample: Sample | None, taps: Sequence[TapMeasures], work: Work | None, judged: Sequence[Finding]
) -> dict[str, Any]:
    """What the page says in numbers, for programs."""
    return {
        "run": overview.folder.url,
        "complete": overview.metadata.complete,
        "verified": overview.verdict[0],
        "rows": overview.metadata.rows,
        "rows_sampled": len(sample.index) if sample else 0,
        "tokens": work.tokens if work else None,
        "padding": work.padding if work else None,
        "tokens_per_s": work.tokens_per_s if work else None,
        "hours": work.wall_s / 3600 if work else None,
        "usd": work.usd if work else None,
        "taps": {
            tap.tap: {"components_90": tap.components(0.9), "effective_dimensions": tap.effective_dimensions}
            for tap in taps
        },
        "findings": [vars(finding) for finding in judged],
    }
