"""Summary of a finished run: from its metadata.json and the hosts' last statuses to one short table."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from launch.view.facts import show_facts
from pod_job.config.schema import JobConfig
from pod_job.run_folder.layout import METADATA
from pod_job.run_folder.metadata import Metadata
from pod_job.run_folder.status import HostStatus, waited_share


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


def show(summary: Summary, console: Console) -> None:
    """Prints the summary, one fact a line."""
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
