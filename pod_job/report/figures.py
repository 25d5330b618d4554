"""Draws the figures of a report from measured values, with matplotlib; reads and writes nothing."""

# pyright: reportMissingImports=false
# matplotlib comes with the extra `report`.

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogFormatter, PercentFormatter

from pod_job.formats.statistics import Summary
from pod_job.report.outliers import dimension_sizes
from pod_job.report.sample import Measures, Sample, TapMeasures
from pod_job.report.work import Work
from pod_job.terminal import printable

T = TypeVar("T")

INK, FAINT = "#1f2933", "#cbd2d9"
ACCENT = "#2f6f9f"
SCALE = LinearSegmentedColormap.from_list("taps", ["#3b6fb6", "#2a9d8f", "#7fa03a", "#d08a2e", "#d1495b"])
MOST_DRAWN = 1e100
MOST_LINES = 8
"""Taps drawn as lines of one figure; more cannot be distinguished."""
BARS = ((0.001, 0.999, 2, FAINT), (0.05, 0.95, 5, "#9bb8cf"), (0.25, 0.75, 9, ACCENT))
"""Lower quantile, upper quantile, line width and color of the parts of a bar of norms."""
STYLE: dict[Any, Any] = {  # matplotlib's stubs want their own literal type for keys
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#eef1f4",
    "legend.frameon": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "svg.fonttype": "none",  # text, in the typeface of the page
    "text.parse_math": False,  # a tap may be called $x$ by who made the run
}


def new_figure(width: float, height: float, columns: int = 1) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(np.atleast_1d(figure.subplots(1, columns)))


def some(taps: Sequence[T]) -> list[T]:
    """Returns at most MOST_LINES of the taps, at even distances, with the first and the last."""
    return [taps[i] for i in sorted({round(i) for i in np.linspace(0, len(taps) - 1, min(MOST_LINES, len(taps)))})]


def colors(count: int) -> list[tuple[float, float, float, float]]:
    """Returns distinct colors in the order of a scale, none of them too light or too dark for either background."""
    return [SCALE(i / max(count - 1, 1)) for i in range(count)]


def norms_by_position(measures: Measures) -> Figure:
    """Draws the median norm at each position, with a band that holds nine tenths of the rows."""
    figure, [axes] = new_figure(6.4, 3.6)
    positions = measures.sample.rows["position"]
    edges = position_edges(int(positions.max(initial=0)))
    bins = np.searchsorted(edges, positions, "right") - 1
    used = np.unique(bins)
    middles = np.array([positions[bins == number].mean() for number in used])
    shown = some(measures.taps)
    for tap, color in zip(shown, colors(len(shown)), strict=True):
        bands = [norm_band(tap.norms[bins == i]) for i in used]
        low, median, high = np.array(bands).T
        axes.plot(middles, median, color=color, label=printable(tap.tap), marker=".", markersize=4, linewidth=1.2)
        axes.fill_between(middles, low, high, color=color, alpha=0.15, linewidth=0)
    axes.set_xscale("symlog", linthresh=1)
    log_scaled(axes)
    axes.set_xlim(left=-0.2)
    label_axes(axes, "position in the prompt", "norm")
    axes.legend(fontsize=8)
    return figure


def norm_band(norms: Float[np.ndarray, "R"]) -> Float[np.ndarray, "3"]:
    """Returns the 0.05, 0.5 and 0.95 quantiles of the norms that are finite; NaN, which is not drawn, without any."""
    finite = norms[np.isfinite(norms)]
    return np.quantile(finite, [0.05, 0.5, 0.95]) if len(finite) else np.full(3, np.nan)


def position_edges(most: int) -> np.ndarray:
    """Returns 0, 1, 2, 4, 5, 8, 11, 16, ...: two bins to each doubling."""
    doubled = [int(2 ** (k / 2)) for k in range(2 * int(np.log2(max(most, 1))) + 2)]
    return np.unique([0, *doubled])


def norm_quantiles(statistics: dict[str, Summary]) -> Figure:
    """Draws the norms of all rows of each tap: median, half, nine tenths, all but a thousandth at either end."""
    figure, [axes] = new_figure(max(4.2, min(9.0, 1.2 + 0.5 * len(statistics))), 3.6)
    for place, summary in enumerate(statistics.values()):
        quantiles = {float(share): norm for share, norm in summary.norm_quantiles.items()}
        for low, high, width, color in BARS:
            ends = [quantiles[low], quantiles[high]]
            axes.plot([place] * 2, ends, color=color, linewidth=width, solid_capstyle="butt")
        axes.plot([place], [quantiles[0.5]], "_", color="white", markersize=9)
        axes.plot([place], [summary.norm_max], ".", color=INK, markersize=4)
    log_scaled(axes)
    axes.yaxis.set_major_formatter(plain)
    name_ticks(axes, list(statistics))
    axes.set_ylabel("norm")
    axes.grid(axis="x", visible=False)
    return figure


def dimensions_by_size(statistics: dict[str, Summary]) -> Figure:
    """Draws the root mean square of dimensions over all rows, largest first, in units of the median dimension."""
    figure, [axes] = new_figure(4.6, 3.4)
    shown = some(list(statistics))
    for tap, color in zip(shown, colors(len(shown)), strict=True):
        sizes = np.sort(dimension_sizes(statistics[tap]))[::-1]
        axes.plot(np.arange(1, len(sizes) + 1), sizes, color=color, label=printable(tap), linewidth=1.2)
    axes.set_xscale("log")
    log_scaled(axes)
    label_axes(axes, "dimensions, largest first", "size, of the median dimension")
    axes.legend(fontsize=8)
    return figure


def variance_spectrum(taps: Sequence[TapMeasures]) -> Figure:
    """Draws the share of the variance that the first principal components hold."""
    figure, [axes] = new_figure(4.6, 3.4)
    shown = some(taps)
    for tap, color in zip(shown, colors(len(shown)), strict=True):
        shares = np.cumsum(tap.spectrum)
        axes.plot(np.arange(1, len(shares) + 1), shares, color=color, label=printable(tap.tap), linewidth=1.2)
    axes.axhline(0.9, color=FAINT, linewidth=1, linestyle="--")
    axes.set_xscale("log")
    axes.set_ylim(0, 1.02)
    axes.xaxis.set_major_formatter(plain)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_xlabel("principal components")
    axes.set_ylabel("variance held")
    axes.legend(fontsize=8, loc="lower right")
    return figure


def tap_similarity(names: Sequence[str], values: Float[np.ndarray, "T T"]) -> Figure:
    """Draws the similarity of every pair of taps as a matrix."""
    side = max(3.4, min(7.0, 1.6 + 0.42 * len(names)))
    figure, [axes] = new_figure(side + 0.6, side)
    image = axes.imshow(values, vmin=0, vmax=1, cmap="viridis")
    name_ticks(axes, names)
    axes.set_yticks(*ticks(names))
    axes.grid(visible=False)
    if len(names) <= 12:
        for (i, j), value in np.ndenumerate(values):
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=8, color=INK if value > 0.6 else "white")
    figure.colorbar(image, ax=axes, shrink=0.8)
    return figure


def coverage(sample: Sample) -> Figure:
    """Draws how many sampled rows are at each position, of each task, and of each token by rank."""
    figure, [by_position, by_task, by_token] = new_figure(9.6, 2.9, 3)
    positions = sample.rows["position"]
    by_position.hist(positions, bins=min(60, max(1, int(positions.max(initial=0)) + 1)), color=ACCENT)
    by_position.set_xlabel("position in the prompt")
    by_position.set_ylabel("rows sampled")
    for axes, column, label in (
        (by_task, "task_id", "tasks, most rows first"),
        (by_token, "token_id", "tokens, commonest first"),
    ):
        _, counts = np.unique(sample.rows[column].astype(str), return_counts=True)
        ranked = np.sort(counts)[::-1]
        axes.plot(
            np.arange(1, len(ranked) + 1), ranked, color=ACCENT, linewidth=1.4, marker="." if len(ranked) < 60 else ""
        )
        axes.set_xlabel(label)
    by_task.set_ylim(bottom=0)
    by_token.set_xscale("log")
    by_token.set_yscale("log")
    for axis in (by_token.xaxis, by_token.yaxis):
        axis.set_major_formatter(plain)
    return figure


def throughput(work: Work) -> Figure:
    """Draws tokens per second of every host, and of all together."""
    figure, [axes] = new_figure(9.6, 2.9)
    in_minutes = work.moments[-1] < 2
    moments = work.moments * (60 if in_minutes else 1)
    for host, color in zip(
        sorted(work.rates, key=lambda host: (len(host), host)), colors(len(work.rates)), strict=True
    ):
        label = f"host {host}" if len(work.rates) <= MOST_LINES else None
        axes.plot(moments, work.rates[host], color=color, linewidth=1, alpha=0.8, drawstyle="steps-mid", label=label)
    if len(work.rates) > 1:
        together = np.sum(list(work.rates.values()), axis=0)
        axes.plot(moments, together, color=INK, linewidth=1.6, drawstyle="steps-mid", label="all")
    axes.set_xlabel("minutes since the first start" if in_minutes else "hours since the first start")
    axes.set_ylabel("tokens a second")
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.legend(fontsize=8, ncols=3)
    return figure


def drawable(values: Sequence[float]) -> Float[np.ndarray, "n"]:
    """Returns the values, NaN in place of those that are so large that axes cannot be scaled to them."""
    return np.where(np.abs(values) < MOST_DRAWN, values, np.nan)


def log_scaled(axes: Axes) -> None:
    """Makes the vertical axis logarithmic, where there is a value that it can show."""
    if 0 < axes.dataLim.y1 < np.inf:
        axes.set_yscale("log")


def label_axes(axes: Axes, x: str, y: str) -> None:
    """Labels both axes and writes their values without exponents."""
    axes.xaxis.set_major_formatter(plain)
    axes.yaxis.set_major_formatter(plain)
    if axes.get_yscale() == "log":
        axes.yaxis.set_minor_formatter(PlainLog())
    axes.set_xlabel(x)
    axes.set_ylabel(y)


def name_ticks(axes: Axes, names: Sequence[str]) -> None:
    places, shown = ticks(names)
    axes.set_xticks(places, shown, rotation=35 if len(shown) > 4 else 0, ha="right" if len(shown) > 4 else "center")


def ticks(names: Sequence[str]) -> tuple[list[int], list[str]]:
    """Returns the places and names of at most 24 ticks."""
    step = -(-len(names) // 24)
    return list(range(0, len(names), step)), [printable(name) for name in names[::step]]


def _plain(value: float | int, _: int) -> str:
    return f"{value:,.0f}" if float(value).is_integer() or abs(value) >= 1000 else f"{value:.4g}"


plain = FuncFormatter(_plain)


class PlainLog(LogFormatter):
    """Writes plain numbers beside those ticks between powers of ten that LogFormatter labels: of short ranges."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return _plain(x, 0) if super().__call__(x, pos) else ""
