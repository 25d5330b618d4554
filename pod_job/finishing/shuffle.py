"""A finished run with its rows in random order, as another run.

Two passes with bounded memory (after Sanders, "Random permutations on distributed, external and hierarchical memory",
1998). The first cuts each batch's rows, permuted, into one stretch per part of the new run; the second gathers a
part's stretches, permutes them, and commits them as a batch. All orders are equally likely; the seed decides. Hosts
share both passes by number, and whatever is done already is left alone. In the new run every row counts as a sample.
"""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from pod_job.errors import JobError
from pod_job.finishing.merge import merge
from pod_job.finishing.shuffle_spill import Piece, Record, open_piece, read_stretch, to_batch, write_piece
from pod_job.progress import Progress, no_progress
from pod_job.reading.row_reader import READS_IN_FLIGHT
from pod_job.run_folder import layout, metadata
from pod_job.run_folder.commit import commit_batch
from pod_job.run_folder.identity import claim
from pod_job.run_folder.layout import committed
from pod_job.storage.folder import Folder
from pod_job.storage.open import open_folder

PART_BYTES = 256 << 20
"""Of all taps of one batch of the new run; the second pass holds about three times as much."""
MOST_ROWS = 10**9
"""As many rows as NumPy draws from a multivariate hypergeometric distribution."""
POLL_S = 1.0
PEERS_TIMEOUT_S = 900.0
"""How long a host waits for the next piece of the others: many times what one takes to write."""


def shuffle(
    run_dir: str | Path,
    out_dir: str | Path,
    seed: int = 0,
    *,
    host: int = 0,
    hosts: int = 1,
    part_bytes: int = PART_BYTES,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """This host's share; returns the new run's metadata, complete once the last host is through.

    Raises JobError where the run is unfinished, has more than 10^9 rows, or `out_dir` belongs to another run.
    """
    source, out = open_folder(run_dir), open_folder(out_dir)
    described = metadata.read_any(source)
    if not described["complete"]:
        raise JobError(f"{source.url}: unfinished; start the job again before its rows are shuffled")
    if described["rows"] > MOST_ROWS:
        raise JobError(f"{source.url}: {described['rows']} rows, at most {MOST_ROWS} can be shuffled at once")
    if source.url == out.url:
        raise JobError(f"OUT={out.url}: is the run itself; name another folder")
    record = Record.of(described)
    part_rows = max(1, part_bytes // record.bytes)
    claim(out, _identity(described, part_rows, seed))
    sizes = [entry["rows"] for entry in described["rows_files"]]
    parts = part_sizes(sum(sizes), part_rows)
    if len(committed(out)) == len(parts):
        return _finish(out)
    mine = np.arange(host, len(parts), hosts)
    places = np.empty((len(sizes), 2, len(mine)), np.int64)  # per batch: where each part's stretch begins, its length
    for number, counts in enumerate(progress(stretches(sizes, parts, seed), len(sizes), "batches cut")):
        places[number] = (np.cumsum(counts) - counts)[mine], counts[mine]
        if number % hosts == host and sizes[number]:
            write_piece(source, out, described, record, number, batch_order(number, sizes[number], seed))
    _await_pieces(out, sizes, hosts)
    done = committed(out)
    pieces = [open_piece(out, number) if size and len(done) < len(parts) else None for number, size in enumerate(sizes)]
    gathered = zip((mine + 1).tolist(), places.transpose(2, 1, 0), strict=True)
    for part, (begins, counts) in progress(gathered, len(mine), "parts"):
        if part not in done:
            wanted = [(p, int(b), int(n)) for p, b, n in zip(pieces, begins, counts, strict=True) if p and n]
            _write_part(out, record, part, wanted, seed, host)
    return _finish(out)


def part_sizes(rows: int, part_rows: int) -> Int[np.ndarray, "P"]:
    """The rows of each part: all equal, but the last."""
    return np.diff(np.append(np.arange(0, rows, part_rows), rows))


def stretches(sizes: Sequence[int], parts: Int[np.ndarray, "P"], seed: int) -> Iterator[Int[np.ndarray, "P"]]:
    """For each batch, how many of its rows go to each part, as if the parts were dealt from one shuffled deck."""
    room = parts.copy()
    for number, size in enumerate(sizes):
        counts = np.random.default_rng([seed, 0, number]).multivariate_hypergeometric(room, size, method="marginals")
        room -= counts
        yield counts


def batch_order(number: int, size: int, seed: int) -> Int[np.ndarray, "R"]:
    """The order in which a batch's rows are dealt to the parts."""
    return np.random.default_rng([seed, 1, number]).permutation(size)


def part_order(number: int, size: int, seed: int) -> Int[np.ndarray, "R"]:
    """The order of a part's rows, once those of all batches have come together."""
    return np.random.default_rng([seed, 2, number]).permutation(size)


def _identity(described: dict[str, Any], part_rows: int, seed: int) -> dict[str, Any]:
    given = described["provenance"]
    dealt = {"seed": seed, "samples": given["tasks"]["samples"], "batch_samples": given["save_every_n_samples"]}
    if described.get("rounding"):
        dealt["rounding"] = described["rounding"]
    tasks = given["tasks"] | {"samples": described["rows"]}
    return given | {"tasks": tasks, "save_every_n_samples": part_rows, "shuffled": dealt}


def _await_pieces(out: Folder, sizes: Sequence[int], hosts: int) -> None:
    """Until every host's share of the first pass is there; after the last part is committed they are gone again.

    JobError naming the hosts that are late once no piece has come for PEERS_TIMEOUT_S.
    """
    wanted = {layout.piece_file(number): number % hosts for number, size in enumerate(sizes) if size}
    came, last = len(wanted), time.monotonic()
    while (missing := wanted.keys() - set(out.names(layout.PIECES))) and not out.stat(layout.METADATA):
        if len(missing) != came:
            came, last = len(missing), time.monotonic()
        elif time.monotonic() - last > PEERS_TIMEOUT_S:
            late = ", ".join(map(str, sorted({wanted[name] for name in missing})))
            raise JobError(
                f"{out.url}: no piece has come for {PEERS_TIMEOUT_S:g} s, and {len(missing)} are missing, of host "
                f"{late} of {hosts}; see whether it runs, start it again with --host and --hosts, and then this one"
            )
        time.sleep(POLL_S)


def _write_part(
    out: Folder, record: Record, part: int, wanted: Sequence[tuple[Piece, int, int]], seed: int, host: int
) -> None:
    """Gathers the part's stretches, `(piece, begin, length)` each, and commits them, permuted, as a batch."""
    with ThreadPoolExecutor(READS_IN_FLIGHT) as pool:
        found = list(pool.map(lambda stretch: read_stretch(out, record, *stretch), wanted))
    rows = np.concatenate([records for records, _ in found])
    tasks = [name for _, names in found for name in names]
    commit_batch(out, to_batch(record, part, rows, tasks, part_order(part, len(rows), seed)), host)


def _finish(out: Folder) -> dict[str, Any]:
    described = merge(out)
    if described["complete"]:
        for name in out.names(layout.PIECES):
            out.remove(name)
    return described
