"""Writes a finished run with its rows in random order as another run.

Two passes with bounded memory (after Sanders, "Random permutations on distributed, external and hierarchical memory",
1998). The first cuts each batch's rows, permuted, into one segment per part of the new run; the second gathers a
part's segments, permutes them, and commits them as a batch. All orders are equally likely; the seed decides. Hosts
share both passes by number, and what is done already is left alone. In the new run every row counts as a sample.
"""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
from jaxtyping import Int

from pod_job.errors import JobError, at_least
from pod_job.finishing.merge import merge
from pod_job.finishing.shuffle_spill import RowLayout, Segment, Spill, SpillFile
from pod_job.progress import Progress, no_progress
from pod_job.reading.row_reader import READS_IN_FLIGHT
from pod_job.run_folder import layout, metadata
from pod_job.run_folder.commit import commit_batch
from pod_job.run_folder.entries import read_rows
from pod_job.run_folder.identity import Identity, ShuffleIdentity, claim
from pod_job.run_folder.layout import committed
from pod_job.run_folder.metadata import Metadata
from pod_job.run_folder.tokenizer import copy_tokenizer
from pod_job.storage.folder import Folder
from pod_job.storage.open import open_folder

PART_BYTES = 256 << 20
"""Bytes of one batch of the new run, all taps together; the second pass holds about three times as much."""
MAX_ROWS = 10**9
"""NumPy draws at most so many from a multivariate hypergeometric distribution."""
POLL_S = 1.0
NOTE_EVERY_S = 30.0
PEERS_TIMEOUT_S = 900.0
"""Longest wait for the next spill file of another host: many times what one takes to write."""


def shuffle(
    run_dir: str | Path,
    out_dir: str | Path,
    seed: int = 0,
    *,
    shard: tuple[int, int] = (0, 1),
    part_bytes: int = PART_BYTES,
    progress: Progress = no_progress,
) -> Metadata:
    """Does this host's share; returns the new run's metadata, complete once the last host is through.

    Args:
        shard: (index, count) of this host among those that share the work.
        part_bytes: size of a batch of the new run.
    Raises:
        JobError: the run is unfinished, has more than 10^9 rows, or `out_dir` belongs to another run.
    """
    host, hosts = shard
    at_least("--hosts", hosts, 1)
    at_least("--seed", seed, 0)
    if not 0 <= host < hosts:
        raise JobError(f"--host={host}: not one of the {hosts} processes; use 0 to {hosts - 1}")
    run = open_folder(run_dir)
    spill = _open_spill(run, open_folder(out_dir))
    out = spill.out
    part_rows = max(1, part_bytes // spill.layout.bytes)
    claim(out, _identity(spill.metadata, part_rows, seed))
    copy_tokenizer(run, out)
    sizes = [entry.rows for entry in spill.metadata.rows_files]
    parts = part_sizes(sum(sizes), part_rows)
    if len(committed(out)) == len(parts):
        return _finish(out)
    own_parts = np.arange(host, len(parts), hosts)
    places = np.empty((len(sizes), 2, len(own_parts)), np.int64)  # per batch: each part's segment, its start and rows
    for number, counts in enumerate(progress(segment_sizes(sizes, parts, seed), len(sizes), "batches cut")):
        places[number] = (np.cumsum(counts) - counts)[own_parts], counts[own_parts]
        if number % hosts == host and sizes[number]:
            spill.write(number, batch_order(number, sizes[number], seed))
    host_of = {layout.spill_file(number): number % hosts for number, size in enumerate(sizes) if size}
    for _ in progress(_arrivals(out, host_of, hosts), len(host_of), "spill files"):
        pass
    done = committed(out)
    files = [spill.open(number) if size and len(done) < len(parts) else None for number, size in enumerate(sizes)]
    gathered = zip((own_parts + 1).tolist(), places.transpose(2, 1, 0), strict=True)
    for part, (starts, counts) in progress(gathered, len(own_parts), "parts"):
        if part not in done:
            _write_part(spill, part, _segments(files, starts, counts), seed, host)
    return _finish(out)


def _segments(files: Sequence[SpillFile | None], starts: np.ndarray, counts: np.ndarray) -> list[Segment]:
    """Returns where the rows of one part lie in the spilled batches."""
    return [
        Segment(file, int(start), int(rows))
        for file, start, rows in zip(files, starts, counts, strict=True)
        if file and rows
    ]


def part_sizes(rows: int, part_rows: int) -> Int[np.ndarray, "P"]:
    """Returns the rows of each part: all equal, but the last."""
    return np.diff(np.append(np.arange(0, rows, part_rows), rows))


def segment_sizes(sizes: Sequence[int], parts: Int[np.ndarray, "P"], seed: int) -> Iterator[Int[np.ndarray, "P"]]:
    """Yields for each batch how many of its rows go to each part, as if the parts were dealt from one shuffled deck."""
    room = parts.copy()
    for number, size in enumerate(sizes):
        counts = np.random.default_rng([seed, 0, number]).multivariate_hypergeometric(room, size, method="marginals")
        room -= counts
        yield counts


def batch_order(number: int, size: int, seed: int) -> Int[np.ndarray, "R"]:
    """Returns the order in which a batch's rows are assigned to the parts."""
    return np.random.default_rng([seed, 1, number]).permutation(size)


def part_order(number: int, size: int, seed: int) -> Int[np.ndarray, "R"]:
    """Returns the order of a part's rows, once those of all batches have come together."""
    return np.random.default_rng([seed, 2, number]).permutation(size)


def _open_spill(source: Folder, out: Folder) -> Spill:
    """Returns the spill between two run folders. JobError where the first cannot be shuffled into the second."""
    described = metadata.read_any(source)
    if not described.complete:
        raise JobError(f"{source.url}: unfinished; start the job again before its rows are shuffled")
    if described.rows > MAX_ROWS:
        raise JobError(f"{source.url}: {described.rows} rows, at most {MAX_ROWS} can be shuffled at once")
    if source.url == out.url:
        raise JobError(f"OUT={out.url}: is the run itself; name another folder")
    with_rows = next((entry for entry in described.rows_files if entry.rows), None)
    optional = () if with_rows is None else tuple(read_rows(source, with_rows).optional)
    return Spill(source, out, described, RowLayout.of(described, optional))


def _identity(described: Metadata, part_rows: int, seed: int) -> Identity:
    source = described.provenance
    return msgspec.structs.replace(
        source,
        tasks=msgspec.structs.replace(source.tasks, samples=described.rows),
        save_every_n_samples=part_rows,
        shuffled=ShuffleIdentity(seed, source.tasks.samples, source.save_every_n_samples, described.rounding),
    )


def _arrivals(out: Folder, host_of: Mapping[str, int], hosts: int) -> Iterator[str]:
    """Yields each host's spill files as they come, and says which are waited for.

    After the last part is committed they are gone again.

    Raises:
        JobError: no file has come for PEERS_TIMEOUT_S; names the hosts that are late.
    """
    missing, last, noted = set(host_of), time.monotonic(), float("-inf")
    while True:
        arrived = missing.intersection(out.names(layout.SPILL))
        yield from sorted(arrived)
        missing -= arrived
        if not missing or out.stat(layout.METADATA):
            return
        now = time.monotonic()
        last = now if arrived else last
        late = ", ".join(map(str, sorted({host_of[name] for name in missing})))
        if now - noted > NOTE_EVERY_S:
            noted = now
            print(f"note: waiting for {len(missing)} spill files, of host {late} of {hosts}", file=sys.stderr)
        if now - last > PEERS_TIMEOUT_S:
            raise JobError(
                f"{out.url}: no spill file has come for {PEERS_TIMEOUT_S:g} s, and {len(missing)} are missing, of host "
                f"{late} of {hosts}; see whether it runs, start it again with --host and --hosts, and then this one"
            )
        time.sleep(POLL_S)


def _write_part(spill: Spill, part: int, segments: Sequence[Segment], seed: int, host: int) -> None:
    """Gathers the part's segments and commits them, permuted, as a batch."""
    with ThreadPoolExecutor(READS_IN_FLIGHT) as pool:
        read = list(pool.map(spill.read, segments))
    rows = np.concatenate([rows for rows, _ in read])
    tasks = [task for _, tasks in read for task in tasks]
    commit_batch(spill.out, spill.to_batch(part, rows, tasks, part_order(part, len(rows), seed)), host)


def _finish(out: Folder) -> Metadata:
    described = merge(out)
    if described.complete:
        for name in out.names(layout.SPILL):
            out.remove(name)
    return described
