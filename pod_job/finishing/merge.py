"""From commit records to `activations/metadata.json`: reads records, never the data; safe to repeat at any time."""

import itertools
import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import msgspec

from pod_job import __version__
from pod_job.errors import JobError
from pod_job.finishing.tally import Plan, RunTally, join, read_plan, tally_records
from pod_job.formats.records import now
from pod_job.progress import Progress, no_progress
from pod_job.run_folder import layout
from pod_job.run_folder import metadata as metadata_file
from pod_job.run_folder.accepted import read_accepted, short
from pod_job.run_folder.commit import CommitRecord, PromptCounts, read_record
from pod_job.run_folder.compaction import place, read_compaction
from pod_job.run_folder.differences import differences
from pod_job.run_folder.identity import Identity, RelativeErrors
from pod_job.run_folder.layout import committed
from pod_job.run_folder.metadata import Metadata
from pod_job.run_folder.parity import read_all_parity
from pod_job.storage.folder import Folder

READS_IN_FLIGHT = 32
ABANDONED_S = 600.0
"""A temporary file that was last written to so long ago is a killed writer's."""
WINDOW = 256
"""Records that are added up by themselves, and from a bucket are in memory at a time: statistics make them large."""
LEAST_WINDOWS = 8
"""Fewer are read sooner than other processes are started."""
MOST_NAMED = 4
"""Batches that a message names."""


def merge(folder: Folder, progress: Progress = no_progress, processes: int = 1) -> Metadata:
    """Writes metadata.json for every batch committed so far and returns it; only its time differs between two merges.

    An unfinished run gets `"complete": false` and the numbers in `missing`.

    Args:
        processes: read the records of a long run; more than one only in a program that can be imported again.
    Raises:
        JobError: the records contradict run.json, themselves, each other or a sound metadata.json; nothing is written.
    """
    while True:
        metadata = gather(folder, progress, processes)
        written = folder.replace(layout.METADATA, metadata_file.render(metadata))
        # A slow merge must not overwrite one that saw the run finished, or compacted.
        if not written:
            continue
        if metadata.complete:
            if metadata.joined is not None or read_compaction(folder) is None:
                break
        elif len(committed(folder)) < metadata.total_batches:
            break
    if metadata.complete:
        folder.sweep(ABANDONED_S, layout.is_batch_file)
    return metadata


def gather(folder: Folder, progress: Progress = no_progress, processes: int = 1) -> Metadata:
    """Returns what metadata.json should hold now, by the records alone. JobError as `merge` raises it."""
    numbers = sorted(committed(folder))
    windows = [numbers[start : start + WINDOW] for start in range(0, len(numbers), WINDOW)]
    plan = read_plan(folder)
    if len(windows) < LEAST_WINDOWS:
        processes = 1
    with _mapper(processes) as map_windows:
        tallies = map_windows(partial(_tally_window, folder, plan), windows)
        metadata = _combine(folder, plan, numbers, progress(tallies, len(windows), f"x {WINDOW} records"))
    try:
        earlier = metadata_file.read_any(folder)
    except JobError:
        return metadata  # there is none, or a damaged one: it is made of the records
    if problem := contradiction(folder, earlier, metadata):
        raise JobError(problem)
    return metadata


def contradiction(folder: Folder, earlier: Metadata, current: Metadata) -> str:
    """Returns what batches have lost or changed since metadata.json was `earlier`, with the fix; "" for nothing.

    Records are never changed, so they can only become more.
    """
    name = f"{folder.url}/{layout.METADATA}"
    if problem := of_another_run(folder, earlier, current.provenance):
        return problem
    before, after = _batch_contents(earlier), _batch_contents(current)
    absent = before.keys() - after.keys()
    if lost := sorted(absent - committed(folder) if absent else absent):  # not those committed in the meantime
        return (
            f"{name}: lists {_batch_names(lost)}, of which there is no commit record; for "
            f"{_commit_names(lost)}: {layout.REPAIR}; or remove {name} to be without"
        )
    if earlier.joined and not current.joined and read_compaction(folder) is None:
        return (
            f"{name}: lists files that a compaction joined, of which there is no {layout.COMPACTION}; copy it again, "
            f"or remove {name} if the files were not joined"
        )
    if changed := [number for number, files in before.items() if number in after and after[number] != files]:
        return (
            f"{name}: lists other content of {_batch_names(changed)} than {_commit_names(changed)}; remove {name} and "
            "merge again if what they describe was computed again, else copy them again: they are another run's"
        )
    return ""


def of_another_run(folder: Folder, described: Metadata, identity: Identity) -> str:
    """Returns in what metadata.json is not of the run with this identity, with the fix; "" where it is."""
    differing = differences(msgspec.to_builtins(described.provenance), msgspec.to_builtins(identity))
    if not differing:
        return ""
    (field, was, is_now), name = differing[0], f"{folder.url}/{layout.METADATA}"
    return (
        f"{name}: is not of the run in {layout.RUN}: {field} is {short(was)} here, {short(is_now)} there; copy "
        f"both again, or remove {name} if it is the one that is wrong"
    )


def _batch_contents(metadata: Metadata) -> dict[int, list[tuple[str, int, str]]]:
    """Returns the tap, size and checksum of each file of each batch, wherever the file lies."""
    contents: dict[int, list[tuple[str, int, str]]] = {}
    for entry in metadata.batches:
        contents.setdefault(entry.batch_id, []).append((entry.layer, entry.size, entry.crc32c))
    for entry in metadata.rows_files:
        contents.setdefault(entry.batch_id, []).append(("", entry.size, entry.crc32c))
    return contents


def _batch_names(numbers: Sequence[int]) -> str:
    names = ", ".join(map(str, numbers[:MOST_NAMED]))
    more = f" and {len(numbers) - MOST_NAMED} more" if len(numbers) > MOST_NAMED else ""
    return f"batch{'es' * (len(numbers) > 1)} {names}{more}"


def _commit_names(numbers: Sequence[int]) -> str:
    return ", ".join(layout.commit_file(number) for number in numbers[:MOST_NAMED])


def combine(folder: Folder, numbers: list[int], records: Iterable[CommitRecord]) -> Metadata:
    """Returns what `gather` does, from the records of these batches in their order."""
    plan, rest = read_plan(folder), iter(records)
    windows = iter(lambda: list(itertools.islice(rest, WINDOW)), [])
    return _combine(folder, plan, numbers, (tally_records(folder, plan, window) for window in windows))


def read_records(folder: Folder, numbers: list[int]) -> Iterator[CommitRecord]:
    """Yields the records in order of batch; from a bucket many reads are in flight."""
    if folder.local_path(layout.RUN):
        # Local reads wait for nothing: threads would only hand the interpreter lock around.
        yield from (read_record(folder, number) for number in numbers)
        return
    with ThreadPoolExecutor(READS_IN_FLIGHT) as pool:
        yield from pool.map(lambda number: read_record(folder, number), numbers)


@contextmanager
def _mapper(processes: int) -> Iterator[Callable[[Callable, list], Iterable[Any]]]:
    """Yields a `map` in so many processes that does not run ahead of who takes its results."""
    if processes == 1:
        yield map
        return
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        ahead = 4 * processes
        yield lambda function, items: itertools.chain.from_iterable(
            pool.map(function, items[start : start + ahead]) for start in range(0, len(items), ahead)
        )


def _tally_window(folder: Folder, plan: Plan, numbers: list[int]) -> RunTally:
    return tally_records(folder, plan, read_records(folder, numbers))


def _combine(folder: Folder, plan: Plan, numbers: list[int], tallies: Iterable[RunTally]) -> Metadata:
    """Returns the metadata of windows of records: sums do not depend on the process that added up a window."""
    if surplus := [number for number in numbers if not 1 <= number <= plan.batches]:
        raise JobError(f"{folder.url}: batch {surplus[0]} is committed, but the run has batches 1 to {plan.batches}")
    tally = RunTally()
    for window in tallies:
        join(tally, window, folder.url)
    files = read_compaction(folder)
    joined = None if files is None else place(folder.url, files, tally.batches, tally.rows_files)
    missing, identity = sorted(set(range(1, plan.batches + 1)) - set(numbers)), plan.identity
    return Metadata(
        model_name=identity.model.name,
        layers_extracted=sorted({layer for tap in plan.taps if (layer := layout.layer_number(tap)) >= 0}),
        hidden_dim=identity.model.hidden_dim,
        total_samples=tally.samples,
        format=layout.FORMAT,
        complete=not missing,
        missing=missing,
        total_batches=plan.batches,
        rows=tally.rows,
        dtype=identity.dtype,
        taps=plan.taps,
        widths={tap: measured.width for tap, measured in tally.statistics.items()},
        statistics={tap: measured.summary() for tap, measured in tally.statistics.items()},
        rounding=_rounding(plan, tally),
        provenance=identity,
        parity=read_all_parity(folder),
        pod_job_version=__version__,
        merged=now(),
        rows_files=tally.rows_files,
        batches=tally.batches,
        prompts=_prompt_counts(plan, tally),
        joined=joined,
        accepted=read_accepted(folder) or None,
    )


def _prompt_counts(plan: Plan, tally: RunTally) -> PromptCounts | None:
    """Returns the counts of all batches, and of the tasks that were left out before there were batches."""
    skipped = Counter(plan.identity.tasks.skipped_by_reason) + tally.skipped
    counts = PromptCounts(
        skipped=dict(sorted(skipped.items())),
        doubled_bos=tally.doubled_bos,
        tokens=tally.tokens,
        dropped_tokens=tally.dropped_tokens,
    )
    return None if counts == PromptCounts() else counts


def _rounding(plan: Plan, tally: RunTally) -> dict[str, RelativeErrors]:
    """Returns per tap of eight bits the root mean square of the rows' relative errors, and the largest."""
    errors = {
        tap: RelativeErrors((squares / max(1, tally.statistics[tap].count)) ** 0.5, largest)
        for tap, (squares, largest) in tally.rounding.items()
    }
    # A shuffle has the same rows, so they are as far off as they were.
    shuffled = plan.identity.shuffled
    return errors or (shuffled.rounding if shuffled else {})
