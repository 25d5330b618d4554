"""Makes the page of a report and its figures: samples rows, measures them, draws, fills the template."""

# pyright: reportMissingImports=false
# matplotlib comes with the extra `report`.
import base64
import json
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
import msgspec
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from pod_job import __version__
from pod_job.checking.consent import NO_CONSENT, Consent
from pod_job.progress import Progress, no_progress
from pod_job.report import figures
from pod_job.report.findings import Finding, findings
from pod_job.report.outliers import Dimension, OutlierRows, outlier_dimensions, outlier_rows
from pod_job.report.overview import Overview, open_tap
from pod_job.report.sample import Measures, measure_tap, similarity, take_sample
from pod_job.report.work import Work, read_work
from pod_job.run_folder.metadata import Metadata
from pod_job.run_folder.start import read_start, shared_name
from pod_job.terminal import printable

DPI = 150
PAGE_FONT = b"system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif"
"""Typeface of style.html.j2."""
SNIPPET = """\
from pod_job.dataset import ActivationDataset

dataset = ActivationDataset("RUN_DIR", layer={tap}, exclude="sink")
for vectors in dataset.batches(4096, seed=0, epoch=0, as_="torch"):
    ...  # [4096, hidden], shuffled
"""


class TapFacts(msgspec.Struct, frozen=True):
    """Spread of a tap's sampled rows: components for 90% of their variance, and their effective dimensions."""

    components_90: int
    effective_dimensions: float


class ReportFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Numbers of the page, as `pod-job report --json` prints them; None for what was not recorded."""

    run: str
    complete: bool
    verified: bool | None
    rows: int
    rows_sampled: int
    tokens: int | None
    padding: float | None
    waited: float | None
    tokens_per_s: float | None
    hours: float | None
    usd: float | None
    taps: dict[str, TapFacts]
    findings: list[Finding]


@dataclass(frozen=True)
class Report:
    """The page, its figures as PNG by name, and its numbers."""

    html: str
    pictures: dict[str, bytes]
    facts: ReportFacts


@dataclass(frozen=True)
class PageContent:
    """Values that the template shows. `measures` and `outliers` are None for a run without rows.

    `images` are the figures as data URLs of SVG files, by name.
    """

    overview: Overview
    measures: Measures | None
    outliers: OutlierRows | None
    dimensions: list[tuple[str, list[Dimension]]]
    work: Work | None
    findings: list[Finding]
    images: dict[str, str]
    version: str = __version__

    @property
    def described(self) -> Metadata:
        return self.overview.metadata

    @property
    def bytes(self) -> int:
        return sum(file.size for file in self.described.batches)

    @property
    def dataset(self) -> str:
        """Name of the prompts' file or dataset, where a job recorded one; never a path of one machine."""
        tasks = (read_start(self.overview.folder) or self.overview.config).get("tasks")
        path = tasks.get("path") if isinstance(tasks, dict) else None
        return ", ".join(map(shared_name, path if isinstance(path, list) else [path] if path else []))

    @property
    def snippet(self) -> str:
        """Python that trains on the middle tap."""
        tap = self.described.taps[len(self.described.taps) // 2]
        return SNIPPET.format(tap=json.dumps(tap))

    @property
    def identity(self) -> dict[str, Any]:
        """Identity as JSON values."""
        return msgspec.to_builtins(self.overview.identity)


def make_report(
    overview: Overview, rows: int, consent: Consent = NO_CONSENT, progress: Progress = no_progress
) -> Report:
    """Returns the report of a run.

    Args:
        rows: most rows to sample; they bound the memory, one tap at a time.
        consent: which inputs of the run may be opened for the text of rows.
    """
    taps = overview.metadata.taps
    work, measures, outliers = read_work(overview), None, None
    if overview.metadata.rows:
        first = open_tap(overview, taps[0])
        sample = take_sample(first, rows)
        measured = [measure_tap(open_tap(overview, tap), sample) for tap in progress(taps, len(taps), "taps")]
        measures = Measures(sample, measured, similarity(measured) if len(taps) > 1 else None)
        outliers = outlier_rows(overview, first, measures, consent)
    with matplotlib.rc_context(figures.STYLE):
        drawn = draw(overview, measures, work)
        pictures = {name: encoded(figure, "png") for name, figure in drawn.items()}
        images = {name: data_url(encoded(figure, "svg")) for name, figure in drawn.items()}
    content = PageContent(
        overview=overview,
        measures=measures,
        outliers=outliers,
        dimensions=figures.some(list(outlier_dimensions(overview).items())),
        work=work,
        findings=findings(overview, measures, work),
        images=images,
    )
    return Report(render(content), pictures, facts(content))


def draw(overview: Overview, measures: Measures | None, work: Work | None) -> dict[str, Figure]:
    """Returns the figures by name, without those that have nothing to show."""
    drawn: dict[str, Figure] = {}
    if measures is not None:
        taps, statistics = measures.taps, overview.metadata.statistics
        drawn["norms_by_position"] = figures.norms_by_position(measures)
        drawn["norm_quantiles"] = figures.norm_quantiles(statistics)
        drawn["dimension_sizes"] = figures.dimensions_by_size(statistics)
        if any(len(tap.spectrum) for tap in taps):
            drawn["variance_spectrum"] = figures.variance_spectrum(taps)
        if measures.similarity is not None:
            drawn["tap_similarity"] = figures.tap_similarity([tap.tap for tap in taps], measures.similarity)
        drawn["coverage"] = figures.coverage(measures.sample)
    if work is not None and work.rates:
        drawn["throughput"] = figures.throughput(work)
    return drawn


def encoded(figure: Figure, kind: str) -> bytes:
    """Returns the figure as a file without a date, so that the same run gives the same bytes."""
    file = BytesIO()
    if kind == "svg":  # the page's card is its background, in light and dark
        figure.savefig(file, format=kind, dpi=DPI, metadata={"Date": None}, transparent=True)
    else:
        figure.savefig(file, format=kind, dpi=DPI)
    return file.getvalue()


def data_url(svg: bytes) -> str:
    """Returns a figure as a URL, in the typeface of the page."""
    svg = svg.replace(b"'DejaVu Sans', sans-serif", PAGE_FONT)
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"


def render(content: PageContent) -> str:
    return filled("page.html.j2", content, content.overview.folder.url)


def filled(template: str, content: Any, url: str) -> str:
    """Returns a template of this folder filled with the values of a page about the run at `url`."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=escaped,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"short": short, "duration": duration, "share": lambda value: f"{value:.2%}"}
    text = environment.get_template(template).render(page=content)
    # The page is published with the run: an error in it may name the folder in which it lay.
    return text.replace(str(escape(url)), "RUN_DIR")


def escaped(value: Any) -> Any:
    """Returns a value of the page with its control characters escaped; markup is the template's own."""
    if not isinstance(value, str):
        return value
    return Markup(printable(value)) if isinstance(value, Markup) else printable(value)


def short(value: float | int) -> str:
    """Returns a number with three or more digits: 1,234, 12.3, 0.0123, 1.20 million."""
    for size, name in ((1e9, " billion"), (1e6, " million")):
        if abs(value) >= size:
            return f"{value / size:,.2f}{name}"
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.3g}"


def duration(seconds: float | int) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def facts(content: PageContent) -> ReportFacts:
    """Returns the numbers of the page."""
    overview, measures, work = content.overview, content.measures, content.work
    taps = measures.taps if measures else []
    return ReportFacts(
        run=overview.folder.url,
        complete=overview.metadata.complete,
        verified=overview.verdict.sound,
        rows=overview.metadata.rows,
        rows_sampled=len(measures.sample.index) if measures else 0,
        tokens=work.tokens if work else None,
        padding=work.padding if work else None,
        waited=work.waited if work else None,
        tokens_per_s=work.tokens_per_s if work else None,
        hours=work.wall_s / 3600 if work else None,
        usd=work.usd if work else None,
        taps={tap.tap: TapFacts(tap.components(0.9), tap.effective_dimensions) for tap in taps},
        findings=content.findings,
    )
