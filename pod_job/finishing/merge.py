"""From commit records to `activations/metadata.json`: reads records, never the data; safe to repeat at any time."""

import itertools
import json
import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any

from pod_job import __version__
from pod_job.errors import JobError
from pod_job.finishing.tally import Counted, Plan, count, join, read_plan
from pod_job.formats.checksummed_json import seal
from pod_job.progress import Progress, no_progress
from pod_job.run_folder import layout
from pod_job.run_folder import metadata as metadata_file
from pod_job.run_folder.commit import read_record
from pod_job.run_folder.compaction import place, read_compaction
from pod_job.run_folder.layout import committed
from pod_job.storage.folder import Folder

READS_IN_FLIGHT = 32
ABANDONED_S = 600.0
"""A temporary file that was last written to so long ago is a killed writer's."""
WINDOW = 256
"""Records that are counted by themselves, and from a bucket are in memory at a time: statistics make them large."""
LEAST_WINDOWS = 8
"""Fewer are read sooner than other processes are there."""


def merge(folder: Folder, progress: Progress = no_progress, processes: int = 1) -> dict[str, Any]:
    """Write metadata.json for every batch committed so far and return it; only its time differs between two merges.

    An unfinished run gets `"complete": false` and the numbers in `missing`. Raises JobError, writing nothing, where the
    records contradict run.json, themselves or each other. `processes` read the records of a long run; more than one
    only in a program that can be imported anew.
    """
    while True:
        metadata = gather(folder, progress, processes)
        folder.replace(layout.METADATA, seal(metadata_file.render(metadata)))
        # A slow merge must not be the last word over one that saw the run finished, or compacted.
        if metadata["complete"]:
            if "joined" in metadata or read_compaction(folder) is None:
                break
        elif len(committed(folder)) < metadata["total_batches"]:
            break
    if metadata["complete"]:
        folder.sweep(ABANDONED_S)
    return metadata


def gather(folder: Folder, progress: Progress = no_progress, processes: int = 1) -> dict[str, Any]:
    """What metadata.json has to say now, by the records alone; writes nothing. Raises JobError as `merge` does."""
    numbers = sorted(committed(folder))
    windows = [numbers[start : start + WINDOW] for start in range(0, len(numbers), WINDOW)]
    plan = read_plan(folder)
    if len(windows) < LEAST_WINDOWS:
        processes = 1
    with _spread(processes) as spread:
        parts = spread(partial(_read_window, folder, plan), windows)
        return _combine(folder, plan, numbers, progress(parts, len(windows), f"x {WINDOW} records"))


def combine(folder: Folder, numbers: list[int], records: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """`gather` for the records of these batches, in their order."""
    plan, rest = read_plan(folder), iter(records)
    windows = iter(lambda: list(itertools.islice(rest, WINDOW)), [])
    return _combine(folder, plan, numbers, (count(folder, plan, window) for window in windows))


def _combine(folder: Folder, plan: Plan, numbers: list[int], parts: Iterable[Counted]) -> dict[str, Any]:
    """The metadata of windows of records, each counted by itself: sums do not depend on who counted them."""
    if surplus := [number for number in numbers if not 1 <= number <= plan.batches]:
        raise JobError(f"{folder.url}: batch {surplus[0]} is committed, but the run has batches 1 to {plan.batches}")
    merged = Counted()
    for part in parts:
        join(merged, part, folder.url)
    parity = [_parity(folder, name) for name in folder.names(layout.PARITY)]
    metadata = _metadata(plan, merged, numbers, parity)
    if (files := read_compaction(folder)) is not None:
        metadata["joined"] = place(folder.url, files, merged.batches, merged.rows_files)
    return metadata


@contextmanager
def _spread(processes: int) -> Iterator[Callable[[Callable, list], Iterable[Any]]]:
    """A `map` in so many processes that does not run ahead of who takes its results."""
    if processes == 1:
        yield map
        return
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        ahead = 4 * processes
        yield lambda way, items: itertools.chain.from_iterable(
            pool.map(way, items[start : start + ahead]) for start in range(0, len(items), ahead)
        )


def _read_window(folder: Folder, plan: Plan, numbers: list[int]) -> Counted:
    return count(folder, plan, read_records(folder, numbers))


def _parity(folder: Folder, name: str) -> dict[str, Any]:
    """What one start found when it compared its step with the reference."""
    try:
        return json.loads(folder.read(name))
    except ValueError as error:
        raise JobError(f"{folder.url}/{name}: not JSON ({error})") from error


def read_records(folder: Folder, numbers: list[int]) -> Iterator[dict[str, Any]]:
    """The records in order of batch; from a bucket many reads in flight."""
    if folder.local_path(layout.RUN):
        # Local reads wait for nothing: threads would only hand the interpreter lock around.
        yield from (read_record(folder, number) for number in numbers)
        return
    with ThreadPoolExecutor(READS_IN_FLIGHT) as pool:
        yield from pool.map(lambda number: read_record(folder, number), numbers)


def _metadata(plan: Plan, merged: Counted, numbers: list[int], parity: list[dict[str, Any]]) -> dict[str, Any]:
    identity = plan.identity
    missing = sorted(set(range(1, plan.batches + 1)) - set(numbers))
    return {
        "model_name": identity["model"]["name"],
        "layers_extracted": sorted({layout.layer_number(tap) for tap in plan.taps}),
        "hidden_dim": identity["model"]["hidden_dim"],
        "total_samples": merged.samples,
        "format": layout.FORMAT,
        "complete": not missing,
        "missing": missing,
        "total_batches": plan.batches,
        "rows": merged.rows,
        "dtype": plan.dtype,
        "taps": plan.taps,
        "widths": {tap: tally.width for tap, tally in merged.statistics.items()},
        "statistics": {tap: tally.summary() for tap, tally in merged.statistics.items()},
        "rounding": _rounding(identity, merged),
        "provenance": identity,
        "parity": parity,
        "pod_job_version": __version__,
        "merged": datetime.now(UTC).isoformat(timespec="seconds"),
        "rows_files": merged.rows_files,
        "batches": merged.batches,
    }


def _rounding(identity: dict[str, Any], merged: Counted) -> dict[str, dict[str, float]]:
    """Per tap of eight bits, the root mean square of the rows' relative errors, and the largest."""
    found = {
        tap: {"rms": (squares / max(1, merged.statistics[tap].count)) ** 0.5, "largest": largest}
        for tap, (squares, largest) in merged.rounding.items()
    }
    # A shuffle has the same rows, so they are as far off as they were.
    return found or identity.get("shuffled", {}).get("rounding", {})
