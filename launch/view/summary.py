"""Summary of a finished run: from its metadata.json and the hosts' last statuses to one short table."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from launch.view.facts import show_facts
from pod_job.config.generate import Mode
from pod_job.config.schema import JobConfig
from pod_job.run_folder.layout import METADATA, SAES_METADATA
from pod_job.run_folder.metadata import Metadata, read_any
from pod_job.run_folder.status import HostStatus, waited_share
from pod_job.run_folder.training import LostSae, TrainedEntry, read_training
from pod_job.storage.folder import Folder


@dataclass(frozen=True)
class Summary:
    """The dataset as a whole, and the work of this attempt (a resumed run's attempt did only what was missing).

    `bytes` counts the activation files. `tokens_per_s` is over the time spent extracting, `padding` the share of
    computed positions that held no token, `waited` the share of steps before which the devices waited for input; they
    are None where this attempt had nothing to extract.
    """

    hosts: int
    slices: int
    mesh: dict[str, int]
    prompts: int
    complete: bool
    rows_per_tap: dict[str, int]
    bytes: int
    attempt_prompts: int
    attempt_cut_prompts: int
    attempt_tokens: int
    tokens_per_s: float | None
    padding: float | None
    waited: float | None
    elapsed_s: float
    metadata: str
    logs: str


@dataclass(frozen=True)
class TrainingSummary:
    """The trained SAEs, and the work of this attempt; metrics are those of the last steps."""

    hosts: int
    mesh: dict[str, int]
    complete: bool
    saes: list[TrainedEntry]
    lost: list[LostSae]
    steps: int
    rows: int
    training_s: float
    tokens_per_s: float | None
    elapsed_s: float
    metadata: str
    logs: str


def summary_of(
    config: JobConfig, folder: Folder, statuses: Sequence[HostStatus], elapsed_s: float, logs: Path | str
) -> Summary | TrainingSummary:
    """Returns the summary of what is in a finished run's folder. JobError where its metadata is missing or damaged."""
    if config.mode is not Mode.train:
        return summarise(config, read_any(folder), statuses, elapsed_s, logs)
    trained, seconds = read_training(folder), max((status.seconds for status in statuses), default=0.0)
    return TrainingSummary(
        hosts=config.pod.hosts,
        mesh={"data": config.mesh.data, "model": config.mesh.model},
        complete=trained.complete,
        saes=trained.saes,
        lost=trained.lost,
        steps=trained.steps,
        rows=trained.rows,
        training_s=trained.seconds,
        tokens_per_s=sum(status.tokens for status in statuses) / seconds if seconds else None,
        elapsed_s=elapsed_s,
        metadata=f"{config.storage.run_dir.rstrip('/')}/{SAES_METADATA}",
        logs=str(logs),
    )


def summarise(
    config: JobConfig, metadata: Metadata, statuses: Sequence[HostStatus], elapsed_s: float, logs: Path | str
) -> Summary:
    """Returns the sums over metadata.json and the last statuses; `elapsed_s` is the launcher's own time."""
    rows: dict[str, int] = {}
    for file in metadata.batches:
        rows[file.layer] = rows.get(file.layer, 0) + file.rows
    tokens = sum(status.tokens for status in statuses)
    positions = sum(status.positions for status in statuses)
    seconds = max((status.seconds for status in statuses), default=0.0)
    return Summary(
        hosts=config.pod.hosts,
        slices=config.pod.slices,
        mesh={"data": config.mesh.data, "model": config.mesh.model},
        prompts=metadata.total_samples,
        complete=metadata.complete,
        rows_per_tap=rows,
        bytes=sum(file.size for file in metadata.batches),
        attempt_prompts=sum(status.samples for status in statuses),
        attempt_cut_prompts=sum(status.cut_samples for status in statuses),
        attempt_tokens=tokens,
        tokens_per_s=tokens / seconds if tokens and seconds else None,
        padding=1 - tokens / positions if positions else None,
        waited=waited_share(statuses),
        elapsed_s=elapsed_s,
        metadata=f"{config.storage.run_dir.rstrip('/')}/{METADATA}",
        logs=str(logs),
    )


def as_json(summary: Summary | TrainingSummary) -> str:
    """Returns the summary for programs."""
    return json.dumps(msgspec.to_builtins(summary), indent=2)


def show_trained(summary: TrainingSummary, console: Console) -> None:
    """Prints the summary, one fact a line, and the SAEs as a table."""
    facts = [
        ("hosts", str(summary.hosts)),
        ("mesh", " x ".join(f"{name} {size}" for name, size in summary.mesh.items())),
        ("trained", f"{summary.steps:,} steps on {summary.rows:,} rows in {summary.training_s:,.0f} s"),
    ]
    if summary.tokens_per_s is not None:
        facts.append(("speed", f"{summary.tokens_per_s:,.0f} tokens/s, {summary.elapsed_s:,.0f} s in all"))
    facts += [("lost", f"{sae.name}: its loss was not finite at step {sae.step:,}") for sae in summary.lost]
    show_facts([*facts, ("metadata", summary.metadata), ("logs", summary.logs)], console)
    table = Table("SAE", "loss", "L0", "explained variance", "dead", box=None, pad_edge=False)
    for entry in summary.saes:
        at = entry.metrics
        table.add_row(
            entry.sae.name, f"{at.loss:.4g}", f"{at.l0:.1f}", f"{at.explained_variance:.4f}", f"{at.dead:.1%}"
        )
    console.print(table, highlight=False, markup=False)


def show(summary: Summary | TrainingSummary, console: Console) -> None:
    """Prints the summary, one fact a line."""
    if isinstance(summary, TrainingSummary):
        return show_trained(summary, console)
    rows = set(summary.rows_per_tap.values())
    per_tap = f"{rows.pop():,}" if len(rows) == 1 else str(summary.rows_per_tap)
    facts = [
        ("hosts", f"{summary.hosts}{f' in each of {summary.slices} slices' if summary.slices > 1 else ''}"),
        ("mesh", " x ".join(f"{name} {size}" for name, size in summary.mesh.items())),
        ("prompts", f"{summary.prompts:,}{_of_this_attempt(summary)}"),
        ("rows", f"{per_tap} for each of {', '.join(summary.rows_per_tap)}"),
        ("bytes", f"{summary.bytes:,}"),
        ("tokens", f"{summary.attempt_tokens:,}"),
    ]
    if summary.tokens_per_s is not None:
        facts.append(("speed", f"{summary.tokens_per_s:,.0f} tokens/s, {summary.elapsed_s:,.0f} s in all"))
    if summary.padding is not None:
        facts.append(("padding", f"{summary.padding:.1%} of the positions computed"))
    if summary.waited is not None:
        facts.append(("waited", f"{summary.waited:.1%} of the steps waited for input"))
    facts.append(("metadata", summary.metadata + ("" if summary.complete else " (some batches are missing)")))
    facts.append(("logs", summary.logs))
    show_facts(facts, console)


def _of_this_attempt(summary: Summary) -> str:
    parts = []
    if summary.attempt_cut_prompts:
        parts.append(f"{summary.attempt_cut_prompts:,} cut")
    if summary.attempt_prompts != summary.prompts:
        parts.append(f"{summary.attempt_prompts:,} of them in this attempt")
    return f" ({', '.join(parts)})" if parts else ""
