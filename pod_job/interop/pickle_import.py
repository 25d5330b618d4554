"""Makes a run of the pickle files of the extraction document: the way back from `pod-job export`.

The metadata.json beside the files says which there are. They have no positions and tokens, which become -1; of the
times in a batch the first is used, and vectors become float32 unless another dtype is asked for. Nothing that a pickle
names is ever called.

In a run all batches but the last are of one size. Pickles need not be: each host of a pod may have numbered its own
from 1 and ended with a short one. Then they are put one after the other and cut again at the size of the largest.
"""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from pod_job.errors import JobError
from pod_job.finishing.merge import merge
from pod_job.formats import rows_table
from pod_job.formats.safetensors import DTYPE_OF
from pod_job.interop.pickle_metadata import PickleEntry, PickleMetadata, fingerprint, read_pickle_metadata
from pod_job.interop.pickle_reader import PickleItem, read_pickle
from pod_job.interop.shard_import import import_shards
from pod_job.interop.shard_reader import shard_files
from pod_job.run_folder import layout
from pod_job.run_folder.commit import Batch, commit_batch
from pod_job.run_folder.identity import Identity, ModelIdentity, TasksIdentity, claim
from pod_job.run_folder.layout import committed
from pod_job.run_folder.metadata import Metadata
from pod_job.storage.open import open_folder

FLOATS = ("float32", "bfloat16", "float16")
UNKNOWN = -1
"""Position and token of an imported row."""
PROVENANCE = ("task_id", "sample_idx", "timestamp")

Source = dict[str, PickleEntry]
"""A batch of the pickles: per tap its entry in metadata.json."""
Piece = tuple[int, slice]
"""The number of a source, and which of its items."""


@dataclass(frozen=True)
class Items:
    """Content of the pickles of a source: provenance by row, and per tap the vectors [R, D]."""

    task_id: list[str]
    sample_idx: list[int]
    timestamp: list[str]
    taps: dict[str, np.ndarray]


def import_pickles(pickles: str | Path, out_dir: str | Path, dtype: str = "float32") -> Metadata:
    """Writes the run and returns its metadata; two batches are in memory at a time, and what is there already stays.

    Of a folder with shards (`shard_0001.pkl.gz`), see `shard_import`.

    Raises:
        JobError: a metadata.json or a pickle that is missing or not as documented, layers of a batch with other samples
            than its first, batches to be cut again that are not as large as metadata.json says, or an `out_dir` that
            belongs to another run.
    """
    if dtype not in FLOATS:
        raise JobError(f"dtype={dtype}: not one to import to; use {', '.join(FLOATS)}")
    folder, out = Path(pickles), open_folder(out_dir, "out")
    if shard_files(folder):
        return import_shards(folder, out, DTYPE_OF[dtype])
    described = read_pickle_metadata(folder / "metadata.json")
    sources = _sources(described, folder / "metadata.json")
    sizes, cuts = _cuts(sources)
    claim(out, _identity(described, fingerprint(folder / "metadata.json"), list(sources[0]), sizes, dtype))
    done, resized = committed(out), sizes != [_samples(source) for source in sources]

    @lru_cache(maxsize=1)  # where batches are cut again, a source can end one and begin the next
    def read(number: int) -> Items:
        items = _read_source(folder, sources[number], described.hidden_dim, DTYPE_OF[dtype])
        if resized and len(items.task_id) != _samples(sources[number]):
            raise JobError(
                f"{folder}/{_first(sources[number]).file}: has {len(items.task_id)} activations, metadata.json says "
                f"n_samples={_samples(sources[number])}; batches of unequal size must have one activation per sample"
            )
        return items

    for number, (size, pieces) in enumerate(zip(sizes, cuts, strict=True), 1):
        if number not in done:
            commit_batch(out, _batch(number, size, [_piece(read(source), rows) for source, rows in pieces]), host=0)
    return merge(out)


def _sources(described: PickleMetadata, path: Path) -> list[Source]:
    """Returns the batches of all hosts; where each host numbered its own, a number comes once for each host with it."""
    sources: dict[tuple[int, int], Source] = {}
    seen: Counter[tuple[int, str]] = Counter()
    for entry in described.batches:
        key = entry.batch_id, entry.layer
        sources.setdefault((seen[key], entry.batch_id), {})[entry.layer] = entry
        seen[key] += 1
    files = Counter(PurePosixPath(entry.file) for entry in described.batches)
    if twice := [file for file, times in files.items() if times > 1]:
        raise JobError(f"{path}: lists {twice[0]} twice; name each file once, or its rows would be there twice")
    for _, places in itertools.groupby(sorted(sources), key=lambda place: place[0]):
        numbers = [number for _, number in places]
        if numbers != list(range(1, len(numbers) + 1)):
            raise JobError(f"{path}: batch_id must run from 1 without gaps, found {numbers[:5]}")
    if not any(entry.n_samples > 0 for entry in described.batches):
        raise JobError(f"{path}: batches has no samples; it must list the pickle files")
    first = sources[0, 1]
    for (_, number), source in sources.items():
        if source.keys() != first.keys():
            raise JobError(f"{path}: batch {number} has other layers than batch 1, which has {', '.join(first)}")
        if len({entry.n_samples for entry in source.values()}) > 1 or _samples(source) < 0:
            raise JobError(f"{path}: n_samples of batch {number} must be one number, 0 or more, for all its layers")
    return [{tap: sources[place][tap] for tap in first} for place in sorted(sources)]


def _first(source: Source) -> PickleEntry:
    return next(iter(source.values()))


def _samples(source: Source) -> int:
    return _first(source).n_samples


def _cuts(sources: Sequence[Source]) -> tuple[list[int], list[list[Piece]]]:
    """Returns the samples of each batch of the run, and its pieces: whole sources where their sizes allow it."""
    sizes = [_samples(source) for source in sources]
    most = max(sizes)
    if all(size == most for size in sizes[:-1]) and sizes[-1] > 0:
        return sizes, [[(number, slice(None))] for number in range(len(sizes))]
    made: list[int] = []
    cuts: list[list[Piece]] = []
    room = 0
    for number, size in enumerate(sizes):
        start = 0
        while start < size:
            if not room:
                cuts.append([])
                made.append(0)
                room = most
            stop = min(size, start + room)
            cuts[-1].append((number, slice(start, stop)))
            made[-1] += stop - start
            start, room = stop, room - (stop - start)
    return made, cuts


def _identity(described: PickleMetadata, listed: str, taps: list[str], sizes: list[int], dtype: str) -> Identity:
    """Returns all that is known of what the imported activations depend on."""
    return Identity(
        model=ModelIdentity(name=described.model_name, hidden_dim=described.hidden_dim),
        tasks=TasksIdentity(format="pickles", fingerprint=listed, samples=sum(sizes)),
        taps=taps,
        positions="imported",
        dtype=dtype,
        save_every_n_samples=sizes[0],
    )


def _batch(number: int, n_samples: int, pieces: Sequence[Items]) -> Batch:
    joined = {name: [value for items in pieces for value in getattr(items, name)] for name in PROVENANCE}
    times = joined.pop("timestamp")
    taps = {}
    for tap in pieces[0].taps:
        vectors = [items.taps[tap] for items in pieces]
        if len(widths := {array.shape[1] for array in vectors}) > 1:
            raise JobError(f"batches of {tap} have activations of {sorted(widths)} numbers; they must be equally long")
        taps[tap] = np.concatenate(vectors)
    unknown = dict.fromkeys(("position", "token_id"), [UNKNOWN] * len(times))
    return Batch(number, n_samples, rows_table.from_columns(joined | unknown, times[0] if times else ""), taps)


def _piece(items: Items, rows: slice) -> Items:
    taps = {tap: vectors[rows] for tap, vectors in items.taps.items()}
    return Items(items.task_id[rows], items.sample_idx[rows], items.timestamp[rows], taps)


def _read_source(folder: Path, source: Source, hidden_dim: int, dtype: np.dtype) -> Items:
    provenance: list[list[Any]] = []
    taps = {}
    for tap, entry in source.items():
        items = _items(folder, entry, tap)
        columns = [[getattr(item, name) for item in items] for name in PROVENANCE]
        if provenance and provenance[:2] != columns[:2]:
            raise JobError(f"{folder / entry.file}: has other samples than {_first(source).file}, or another order")
        provenance = provenance or columns
        # A batch without rows does not say how wide they would be.
        vectors = np.stack([item.activation for item in items]) if items else np.zeros((0, hidden_dim))
        taps[tap] = vectors.astype(dtype)
    return Items(provenance[0], provenance[1], provenance[2], taps)


def _items(folder: Path, entry: PickleEntry, tap: str) -> list[PickleItem]:
    path = open_folder(folder, "PICKLES", follow_links=True).local_path(str(PurePosixPath(entry.file)))
    assert path is not None
    content = read_pickle(path, entry.crc32c)
    if content.layer != layout.layer_number(tap):
        raise JobError(f"{path}: is of layer {content.layer}, metadata.json says {tap}")
    if len({item.activation.shape for item in content.activations}) > 1:
        raise JobError(f"{path}: its activations differ in length")
    return content.activations
