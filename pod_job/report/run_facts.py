"""Facts of a run for a table or JSON: the run as a whole, one of its batches, taps or rows."""

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import numpy as np

from pod_job.checking.consent import Consent
from pod_job.errors import JobError
from pod_job.reading.dataset import ActivationDataset
from pod_job.report.overview import Overview, open_tap
from pod_job.report.row_texts import row_texts
from pod_job.run_folder import layout
from pod_job.run_folder.commit import read_record
from pod_job.run_folder.metadata import Metadata
from pod_job.run_folder.timeline import Timeline

INSPECTED_DIMENSIONS = 8

Facts = dict[str, Any]
"""Values by name: single values are shown as lines, lists of dictionaries as tables."""


def run_facts(overview: Overview) -> Facts:
    """Returns the run as a whole: model, data, progress, each tap, each start."""
    identity, described = overview.identity, overview.metadata
    done = described.total_batches - len(described.missing)
    return {
        "run": overview.folder.url,
        "state": "complete" if described.complete else f"UNFINISHED, {len(described.missing)} batches missing",
        "verified": overview.verdict[1],
        "model": identity.model.name,
        "samples": described.total_samples,
        "batches": f"{done} of {described.total_batches}, of {identity.save_every_n_samples} samples",
        "rows": described.rows,
        "positions": identity.positions,
        **dropped(described),
        "dtype": described.dtype,
        "bytes": sum(file.size for file in described.batches),
        "created": overview.run.created,
        "version": overview.run.pod_job_version,
        "taps": [tap_line(overview, tap) for tap in described.taps if tap in described.statistics],
        "parity": [
            {"start": check.attempt, "passed": check.passed, "rows": check.rows, "limit": check.limit}
            | {"largest error": max(error.largest for error in check.errors.values())}
            for check in described.parity
        ],
        "starts": [
            start_line(timeline)
            for timeline in overview.timelines
            if timeline.host == 0 and timeline.points and timeline.phases
        ],
    }


def dropped(described: Metadata) -> Facts:
    """Returns the share of the samples' tokens that the model did not read; nothing where none can be dropped."""
    counts = described.prompts
    if counts is None or not counts.tokens:
        return {}
    share = counts.dropped_tokens / counts.tokens
    return {"dropped tokens": f"{counts.dropped_tokens:,} of {counts.tokens:,} ({share:.1%})"}


def tap_line(overview: Overview, tap: str) -> Facts:
    statistics = overview.metadata.statistics[tap]
    return {
        "tap": tap,
        "width": overview.metadata.widths[tap],
        "mean norm": statistics.mean_norm,
        "median norm": statistics.norm_quantiles["0.5"],
        "largest norm": statistics.norm_max,
        "outlier rows": statistics.outlier_share,
        "scale": statistics.scale,
        "nonfinite": statistics.nonfinite,
    }


def start_line(timeline: Timeline) -> Facts:
    by_time = sorted(timeline.phases.items(), key=lambda phase: phase[1])
    began, last_phase = by_time[0][1], by_time[-1][0]
    return {
        "start": timeline.attempt,
        "began": moment(began),
        "seconds": round(timeline.points[-1][0] - began, 1),
        "ended": last_phase,
        "devices of a host": f"{timeline.devices} x {timeline.device or 'unknown'}",
    }


def batch_facts(overview: Overview, number: int) -> Facts:
    """Returns a batch by its commit record, with the samples in it."""
    total = overview.metadata.total_batches
    if not 1 <= number <= total:
        raise JobError(f"--batch {number}: the run has batches 1 to {total}")
    if number in overview.metadata.missing:
        raise JobError(f"--batch {number} is not committed yet; the same job again computes it")
    record = read_record(overview.folder, number)
    rows = open_tap(overview, overview.metadata.taps[0]).rows(slice(*row_range(overview, number)))
    samples: dict[tuple[str, int], int] = {}
    for sample in zip(rows["task_id"].tolist(), rows["sample_idx"].tolist(), strict=True):
        samples[sample] = samples.get(sample, 0) + 1
    return {
        **{key: getattr(record, key) for key in ("batch", "n_samples", "rows", "host", "started", "committed")},
        "first row": row_range(overview, number)[0],
        "special": int(rows["special"].sum()),
        "sinks": int(rows["sink"].sum()),
        "nonfinite": int(rows["nonfinite"].sum()),
        "samples": [{"task_id": task, "sample_idx": idx, "rows": count} for (task, idx), count in samples.items()],
        "files": [
            {"file": layout.ACTIVATIONS + entry.file, "rows": entry.rows, "size": entry.size, "crc32c": entry.crc32c}
            for entry in (*overview.metadata.batches, *overview.metadata.rows_files)
            if entry.batch_id == number
        ],
    }


def row_range(overview: Overview, number: int) -> tuple[int, int]:
    """Returns the index of the first row of a batch and of the first row after it."""
    sizes = {entry.batch_id: entry.rows for entry in overview.metadata.rows_files}
    start = sum(rows for batch, rows in sizes.items() if batch < number)
    return start, start + sizes[number]


def tap_facts(overview: Overview, tap: str) -> Facts:
    """Returns a tap's statistics over the whole run, and its largest dimensions."""
    open_tap(overview, tap)  # names the taps there are
    statistics = overview.metadata.statistics[tap]
    mean, spread = np.array(statistics.mean), np.sqrt(np.array(statistics.variance))
    size = np.hypot(mean, spread)
    first = np.argsort(size)[::-1][:INSPECTED_DIMENSIONS]
    return {
        **tap_line(overview, tap),
        "norm quantiles": [{"share": share, "norm": norm} for share, norm in statistics.norm_quantiles.items()],
        "largest dimensions": [
            {"dimension": int(d), "mean": float(mean[d]), "deviation": float(spread[d])}
            | {"times the median": float(size[d] / max(np.median(size), 1e-30))}
            for d in first
        ],
    }


def row_facts(overview: Overview, row: int, consent: Consent) -> Facts:
    """Returns a row in all taps, with its origin and the text around its token."""
    taps = overview.metadata.taps
    dataset = open_tap(overview, taps[0])
    if not 0 <= row < len(dataset):
        raise JobError(f"--row {row}: the run has rows 0 to {len(dataset) - 1}")
    origin = {name: value.item() if hasattr(value, "item") else value for name, value in dataset.rows(row).items()}
    facts = {"row": row, "batch": int(dataset.batch_of(np.array([row]))[0]), **origin}
    [text], reason = row_texts(overview, dataset, np.array([row]), consent)
    facts |= asdict(text) | ({"note": f"no more text than this: {reason}"} if reason else {})
    return facts | {"taps": [vector_line(open_tap(overview, tap), row) for tap in taps]}


def vector_line(dataset: ActivationDataset, row: int) -> Facts:
    vector = np.asarray(dataset[row], np.float32)
    norm = float(np.linalg.norm(vector))
    largest = int(np.argmax(np.abs(vector)))
    return {
        "tap": dataset.tap,
        "norm": norm,
        "of the median": norm / max(dataset.metadata.statistics[dataset.tap].norm_quantiles["0.5"], 1e-30),
        "largest dimension": largest,
        "its value": float(vector[largest]),
    }


def moment(unix: float) -> str:
    return datetime.fromtimestamp(unix, UTC).isoformat(timespec="seconds")
