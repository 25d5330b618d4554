"""Writes a run as the pickle files and metadata.json of the extraction document, for programs that read that layout.

Pickled lists cost twenty times the CPU of our own files; `pod_job.interop.pickle_reader` reads them back.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np

from pod_job.errors import JobError, at_least
from pod_job.finishing.merge import ABANDONED_S
from pod_job.formats.records import convert
from pod_job.formats.rows_table import Rows
from pod_job.interop.pickle_metadata import PickleMetadata
from pod_job.interop.pickle_writer import Item, PickleWriter, file_name, of_another_export
from pod_job.reading.dataset import layer_not_found
from pod_job.run_folder import metadata as metadata_file
from pod_job.run_folder.entries import read_rows, read_vectors
from pod_job.run_folder.identity import read_run
from pod_job.run_folder.metadata import Metadata
from pod_job.storage.folder import Folder
from pod_job.storage.open import open_folder


class GivenModel(msgspec.Struct, frozen=True):
    """Part of a recorded configuration: the model as it was named."""

    path: str | None = None


class GivenConfig(msgspec.Struct, frozen=True):
    """Part of a recorded configuration."""

    model: GivenModel = GivenModel()


def export_pickles(
    run_dir: str | Path,
    out_dir: str | Path,
    report: Callable[[str], None] = lambda name: None,
    layers: Sequence[int] | None = None,
    save_every_n_samples: int | None = None,
    model_name: str | None = None,
) -> PickleMetadata:
    """Writes `layer_6_batch_000001.pkl` and its like and a metadata.json beside them, which is returned.

    An export that was interrupted is finished: what is there of it stays, and no other export is written into.
    One batch of the run is in memory at a time, and as much as a file of each layer has.

    Args:
        layers: whose outputs are written; by default all that the run has.
        report: called with the name of each file when it is written.
        save_every_n_samples: activations in a file; by default the number that is the run's samples per batch.
        model_name: by default as the run's configuration records it.
    Raises:
        JobError: no metadata.json in the run, a layer it has not, a file of it is missing or damaged, or `out_dir`
            holds another export.
    """
    run, out = open_folder(run_dir), open_folder(out_dir, "out")
    metadata = metadata_file.read(run)
    taps = metadata.taps if layers is None else [f"layer_{layer}" for layer in layers]
    if absent := [layer for layer in layers or () if f"layer_{layer}" not in metadata.taps]:
        raise JobError(layer_not_found(absent[0], run.url, metadata.taps))
    per_file = metadata.provenance.save_every_n_samples if save_every_n_samples is None else save_every_n_samples
    at_least("save_every_n_samples", per_file, 1)
    tables = {entry.batch_id: entry for entry in metadata.rows_files}
    files = -(-metadata.rows // per_file)
    names = {file_name(tap, number) for tap in taps for number in range(1, files + 1)}
    if others := [name for name in out.names("") if name.endswith(".pkl") and name not in names]:
        raise of_another_export(out, others[0])
    writer = PickleWriter(out, per_file, report, keep=True)
    rows, batch = None, None
    for entry in (entry for entry in metadata.batches if entry.layer in taps):
        vectors = np.asarray(read_vectors(run, entry), np.float32)
        if rows is None or batch != entry.batch_id:
            batch, rows = entry.batch_id, read_rows(run, tables[entry.batch_id])
        writer.add(entry.layer, items(rows, vectors))
    written = metadata.layers_extracted if layers is None else list(layers)
    described = writer.finish(model_name or given_name(run, metadata), written, metadata.hidden_dim)
    out.sweep(ABANDONED_S, {entry.file for entry in described.batches}.__contains__)
    return described


def items(rows: Rows, vectors: np.ndarray) -> list[Item]:
    """Returns a batch's activations of one tap; the document stores them in float32."""
    columns = zip(rows.task_id, rows.sample_idx.tolist(), vectors, strict=True)
    timestamp = sys.intern(rows.timestamp)  # pickle writes equal strings once only where they are one object
    return [
        {"task_id": sys.intern(task), "sample_idx": sample, "activation": vector, "timestamp": timestamp}
        for task, sample, vector in columns
    ]


def given_name(run: Folder, metadata: Metadata) -> str:
    """Returns the model as the job's configuration names it, a path or hub name; else as the run's identity does."""
    record = read_run(run)
    config = convert(record.config or {}, GivenConfig, f"{run.url}/run.json: config", "copy the run again")
    return config.model.path or metadata.model_name
