"""The page of a training run: curves, densities, and the texts on which latents are most active."""

# pyright: reportMissingImports=false
# matplotlib comes with the extra `report`.
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import msgspec
import numpy as np
from matplotlib.figure import Figure

from pod_job import __version__
from pod_job.checking.consent import NO_CONSENT, Consent
from pod_job.interop.card import find_evaluation
from pod_job.report import figures
from pod_job.report.page import data_url, encoded, filled
from pod_job.report.row_texts import RowText, open_decoder
from pod_job.run_folder.identity import read_run
from pod_job.run_folder.layout import sae_prefix
from pod_job.run_folder.tokenizer import Decode
from pod_job.run_folder.training import MetricsRecord, read_metrics
from pod_job.storage.folder import Folder
from pod_job.terminal import printable
from pod_job.training.contexts import BEFORE, Contexts, read_contexts
from pod_job.training.evaluation import DENSITY_EDGES, EvaluationRecord, SaeEvaluation
from pod_job.training.layouts.read import sae_names
from pod_job.training.layouts.sae_lens import CONFIG, read_config

CURVES = {"loss": "loss", "l0": "L0", "explained_variance": "explained variance", "dead": "share of dead latents"}
LEAST_TOP = {"l0": 1.0, "dead": 0.01}
"""Curves that begin at zero, with the least that their axis goes up to: a constant one is no cliff then."""


class SaeFacts(msgspec.Struct, frozen=True):
    """Numbers of an SAE; `shown`: latents with their texts on the page."""

    name: str
    shown: int
    measured: SaeEvaluation | None


class TrainingFacts(msgspec.Struct, frozen=True):
    """Numbers of the page, as `pod-job report --json` prints them."""

    run: str
    steps: int | None
    rows: int | None
    saes: list[SaeFacts]


@dataclass(frozen=True)
class TrainingReport:
    """The page, its figures as PNG by name, and its numbers."""

    html: str
    pictures: dict[str, bytes]
    facts: TrainingFacts


@dataclass(frozen=True)
class Context:
    """A text around the token on which a latent has this value."""

    value: float
    text: RowText


@dataclass(frozen=True)
class Feature:
    """A latent with the contexts in which it is most active."""

    latent: int
    density: float
    contexts: list[Context]


@dataclass(frozen=True)
class SaeContent:
    """An SAE on the page; `index` has the latents whose largest value is on each token."""

    name: str
    architecture: str
    latents: int
    k: int | None
    measured: SaeEvaluation | None
    features: list[Feature]

    @property
    def index(self) -> list[tuple[str, list[int]]]:
        by_token: dict[str, list[int]] = defaultdict(list)
        for feature in self.features:
            by_token[feature.contexts[0].text.token.strip() or feature.contexts[0].text.token].append(feature.latent)
        return sorted(by_token.items(), key=lambda item: (item[0].lower(), item[0]))


@dataclass(frozen=True)
class TrainingContent:
    """Values that the template shows."""

    model: str
    saes: list[SaeContent]
    metrics: MetricsRecord | None
    evaluation: EvaluationRecord | None
    no_text: str | None
    identity: Any
    images: dict[str, str]
    version: str = __version__

    @property
    def steps(self) -> int | None:
        return self.metrics.points[-1].step if self.metrics and self.metrics.points else None

    @property
    def rows(self) -> int | None:
        return self.metrics.points[-1].rows if self.metrics and self.metrics.points else None

    @property
    def seconds(self) -> float | None:
        return self.metrics.points[-1].seconds if self.metrics and self.metrics.points else None


def make_training_report(folder: Folder, latents: int, consent: Consent = NO_CONSENT) -> TrainingReport:
    """Returns the report of a training run.

    Args:
        latents: most latents that are shown with their texts, over all SAEs.
        consent: whether the tokenizer of a model may be used for texts, where the run has none of its own.
    """
    names, run = sae_names(folder), read_run(folder)
    decode, no_text = open_decoder(folder, consent)
    evaluation, metrics = find_evaluation(folder), read_metrics(folder)
    measured = {sae.name: sae for sae in evaluation.saes} if evaluation else {}
    saes = [sae_content(folder, name, measured.get(name), latents // len(names), decode) for name in names]
    with matplotlib.rc_context(figures.STYLE):
        drawn: dict[str, Figure] = {}
        if metrics is not None and metrics.points:
            drawn["curves"] = curves(metrics)
        if measured:
            drawn["densities"] = densities(list(measured.values()))
        pictures = {name: encoded(figure, "png") for name, figure in drawn.items()}
        images = {name: data_url(encoded(figure, "svg")) for name, figure in drawn.items()}
    identity = msgspec.to_builtins(run.identity)
    content = TrainingContent(run.identity.model.name, saes, metrics, evaluation, no_text, identity, images)
    facts = [SaeFacts(sae.name, len(sae.features), sae.measured) for sae in saes]
    html = filled("training.html.j2", content, folder.url)
    return TrainingReport(html, pictures, TrainingFacts(folder.url, content.steps, content.rows, facts))


def sae_content(folder: Folder, name: str, measured: SaeEvaluation | None, latents: int, decode: Decode) -> SaeContent:
    """Returns an SAE with the texts of `latents` latents."""
    config, contexts = read_config(folder, sae_prefix(name) + CONFIG), read_contexts(folder, name)
    origin = config.described.pod_job
    shape = origin.shape if origin else None
    features = [] if contexts is None else [feature_of(contexts, i, decode) for i in chosen(contexts, latents)]
    architecture = shape.architecture.value if shape else config.architecture or "standard"
    return SaeContent(name, architecture, config.d_sae, shape.k if shape else None, measured, features)


def chosen(contexts: Contexts, count: int) -> list[int]:
    """Returns at most `count` latents that have a context, evenly from all of them."""
    active = np.flatnonzero(contexts.values[:, 0] > 0) if contexts.values.shape[1] else np.zeros(0, int)
    return active[np.unique(np.linspace(0, len(active) - 1, min(count, len(active))).round().astype(int))].tolist()


def feature_of(contexts: Contexts, latent: int, decode: Decode) -> Feature:
    """Returns a latent with its texts."""

    def text(tokens: np.ndarray) -> str:
        return decode(tokens[tokens >= 0].tolist()) if (tokens >= 0).any() else ""

    shown = [
        Context(
            float(value), RowText(text(tokens[:BEFORE]), text(tokens[BEFORE : BEFORE + 1]), text(tokens[BEFORE + 1 :]))
        )
        for value, tokens in zip(contexts.values[latent], contexts.tokens[latent], strict=True)
        if value > 0
    ]
    return Feature(latent, float(contexts.density[latent]), shown)


def curves(metrics: MetricsRecord) -> Figure:
    """Draws loss, L0, explained variance and dead latents of some SAEs by step."""
    figure, panels = figures.new_figure(11.0, 2.9, len(CURVES))
    shown = figures.some(list(enumerate(metrics.names)))
    steps = [point.step for point in metrics.points]
    for axes, (field, label) in zip(panels, CURVES.items(), strict=True):
        for (place, name), color in zip(shown, figures.colors(len(shown)), strict=True):
            values = figures.drawable([getattr(point.saes[place], field) for point in metrics.points])
            axes.plot(steps, values, color=color, linewidth=1.2, label=printable(name))
        if field == "loss":
            figures.log_scaled(axes)
        elif field in LEAST_TOP:
            axes.set_ylim(0, max(LEAST_TOP[field], 1.05 * axes.get_ylim()[1]))
        figures.label_axes(axes, "step", label)
    panels[0].legend(fontsize=6)
    return figure


def densities(saes: Sequence[SaeEvaluation]) -> Figure:
    """Draws the number of latents by the share of rows on which they are active; at the left those that never are."""
    figure, [axes] = figures.new_figure(6.4, 3.2)
    shown = figures.some(list(saes))
    middles = [DENSITY_EDGES[0] - 0.75, *(edge + 0.25 for edge in DENSITY_EDGES[:-1])]
    for sae, color in zip(shown, figures.colors(len(shown)), strict=True):
        axes.step(middles, sae.densities, where="mid", color=color, linewidth=1.2, label=printable(sae.name))
    axes.set_xticks(range(-6, 1, 2), [f"1e{exponent}" for exponent in range(-6, 1, 2)])
    axes.set_xlabel("share of rows on which a latent is active")
    axes.set_ylabel("latents")
    axes.legend(fontsize=7)
    return figure
