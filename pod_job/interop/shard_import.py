"""Makes a run of shards, which hold the activations of several layers: see `shard_reader`.

A sample may have one vector or one for each position. What is not in a shard becomes -1 or empty: tokens, times, and
the position of a sample's only vector. All batches but the last have as many samples as the largest shard.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from pod_job.errors import JobError
from pod_job.finishing.merge import merge
from pod_job.formats import rows_table
from pod_job.interop.shard_reader import Shard, ShardItem, read_shard, read_shard_list, vectors_of
from pod_job.run_folder.commit import Batch, commit_batch
from pod_job.run_folder.identity import Identity, ModelIdentity, TasksIdentity, claim
from pod_job.run_folder.layout import committed, layer_number
from pod_job.run_folder.metadata import Metadata
from pod_job.storage.checksums import checksum
from pod_job.storage.folder import Folder

UNKNOWN = -1
"""Position and token of an imported row that has none."""

Named = tuple[str, ShardItem]
"""The task_id of a sample, and the sample in one layer."""


def import_shards(folder: Path, out: Folder, dtype: np.dtype) -> Metadata:
    """Writes the run and returns its metadata; one shard and two batches are in memory at a time.

    Raises:
        JobError: a shard that cannot be read, layers with other samples than each other, or an `out` that belongs to
            another run.
    """
    shards, model_name = read_shard_list(folder)
    totals: Counter[str] = Counter()
    for shard in shards:
        totals.update(shard.counts)
    samples, size = samples_of(folder, totals), max(max(shard.counts.values(), default=0) for shard in shards)
    taps = sorted(totals, key=layer_number)
    first = next(named_samples(shards, taps), None)
    assert first is not None
    width = vectors_of(first[1][0]).shape[1]
    files = [[shard.path.relative_to(folder).as_posix(), shard.path.stat().st_size, shard.counts] for shard in shards]
    fingerprint = checksum([json.dumps(files).encode()]).crc32c
    identity = Identity(
        model=ModelIdentity(name=model_name, hidden_dim=width),
        tasks=TasksIdentity(format="shards", fingerprint=fingerprint, samples=samples),
        taps=taps,
        positions="imported",
        dtype=dtype.name,
        save_every_n_samples=size,
    )
    claim(out, identity)
    done = committed(out)
    for number, content in enumerate(batches(named_samples(shards, taps), size), 1):
        if number not in done:
            commit_batch(out, batch(number, content, taps, dtype), host=0)
    return merge(out)


def samples_of(folder: Path, totals: Counter[str]) -> int:
    """Returns the number of samples, which all layers have."""
    if not totals or not max(totals.values()):
        raise JobError(f"{folder}: the shards have no samples")
    if len(set(totals.values())) > 1:
        listed = ", ".join(f"{tap} {count}" for tap, count in totals.items())
        raise JobError(f"{folder}: layers have unequal numbers of samples ({listed}); a shard is missing")
    return max(totals.values())


Sample = tuple[str, list[ShardItem]]
"""The task_id of a sample, and the sample in each layer."""


def named_samples(shards: Sequence[Shard], taps: Sequence[str]) -> Iterator[Sample]:
    """Yields the samples in order; of a sample whose layers are in two shards, both are read before."""
    pending: dict[str, list[Named]] = {tap: [] for tap in taps}
    for shard in shards:
        content = read_shard(shard.path)
        if {tap: len(items) for tap, items in content.items()} != shard.counts:
            raise JobError(f"{shard.path}: has not the samples that metadata.json says; copy both again")
        for tap, items in content.items():
            pending[tap] += [(f"{shard.folder}_sample_{i.sample_idx}".lstrip("_"), i) for i in items]
        ready = min(map(len, pending.values()))
        for row in zip(*(named[:ready] for named in pending.values()), strict=True):
            if len({(task_id, len(vectors_of(item))) for task_id, item in row}) > 1:
                raise JobError(f"{shard.path}: its layers have other samples than each other, or another order")
            yield row[0][0], [item for _, item in row]
        for named in pending.values():
            del named[:ready]


def batches(samples: Iterator[Sample], size: int) -> Iterator[list[Sample]]:
    """Yields lists of `size` samples; the last may be shorter."""
    content: list[Sample] = []
    for sample in samples:
        content.append(sample)
        if len(content) == size:
            yield content
            content = []
    if content:
        yield content


def batch(number: int, content: Sequence[Sample], taps: Sequence[str], dtype: np.dtype) -> Batch:
    """Returns a batch of these samples."""
    task_ids, sample_idx, positions = list[str](), list[int](), list[int]()
    for task_id, layers in content:
        one = layers[0].activation.values.ndim == 1
        rows = 1 if one else len(layers[0].activation.values)
        task_ids += [task_id] * rows
        sample_idx += [layers[0].sample_idx] * rows
        positions += [UNKNOWN] if one else range(rows)
    columns = {"task_id": task_ids, "sample_idx": sample_idx, "position": positions}
    vectors = {}
    for place, tap in enumerate(taps):
        parts = [vectors_of(layers[place]) for _, layers in content]
        if len(widths := {part.shape[1] for part in parts}) > 1:
            raise JobError(f"samples of {tap} have activations of {sorted(widths)} numbers; they must be equally long")
        vectors[tap] = np.concatenate(parts).astype(dtype)
    columns["token_id"] = [UNKNOWN] * len(task_ids)
    return Batch(number, len(content), rows_table.from_columns(columns, ""), vectors)
