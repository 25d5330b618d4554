"""Writes a run as the pickle files and metadata.json of the extraction document, for programs that read that layout.

Pickled lists cost twenty times the CPU of our own files; `pod_job.reading.pickle_reader` reads them back.
"""

import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pod_job.errors import JobError
from pod_job.formats.records import encode
from pod_job.formats.rows_table import Rows
from pod_job.interop.pickle_metadata import PickleEntry, PickleMetadata
from pod_job.reading.dataset import layer_not_found
from pod_job.run_folder import layout
from pod_job.run_folder import metadata as metadata_file
from pod_job.run_folder.entries import read_rows, read_vectors
from pod_job.storage.open import open_folder


def export_pickles(
    run_dir: str | Path,
    out_dir: str | Path,
    report: Callable[[str], None] = lambda name: None,
    layers: Sequence[int] | None = None,
) -> int:
    """Writes `layer_6_batch_000001.pkl` and its like and a metadata.json beside them; one batch is in memory at a time.

    Args:
        layers: whose outputs are written; by default all that the run has.
        report: called with the name of each file when it is written.
    Returns:
        the number of pickle files.
    Raises:
        JobError: no metadata.json in the run, a layer it has not, or a file of it is missing or damaged.
    """
    run, out = open_folder(run_dir), open_folder(out_dir)
    metadata = metadata_file.read(run)
    taps = metadata.taps if layers is None else [f"layer_{layer}" for layer in layers]
    if absent := [layer for layer in layers or () if f"layer_{layer}" not in metadata.taps]:
        raise JobError(layer_not_found(absent[0], run.url, metadata.taps))
    tables = {entry.batch_id: entry for entry in metadata.rows_files}
    written, batch, rows = [], None, None
    for entry in (entry for entry in metadata.batches if entry.layer in taps):
        if rows is None or batch != entry.batch_id:
            batch, rows = entry.batch_id, read_rows(run, tables[entry.batch_id])
        name = f"{entry.layer}_batch_{entry.batch_id:06d}.pkl"
        content = _content(entry.layer, np.asarray(read_vectors(run, entry), np.float32), rows)
        out.replace(name, pickle.dumps(content, protocol=4))
        written.append(PickleEntry(entry.batch_id, entry.layer, name, entry.n_samples))
        report(name)
    described = PickleMetadata(
        model_name=metadata.model_name,
        layers_extracted=metadata.layers_extracted if layers is None else list(layers),
        hidden_dim=metadata.hidden_dim,
        total_samples=metadata.total_samples,
        batches=written,
    )
    out.replace("metadata.json", encode(described, indent=2))
    return len(written)


def _content(tap: str, vectors: np.ndarray, rows: Rows) -> dict[str, Any]:
    """Returns the documented dictionary; the document keeps activations in float32."""
    columns = zip(rows.task_id, rows.sample_idx.tolist(), vectors, strict=True)
    return {
        "layer": layout.layer_number(tap),
        "activations": [
            {"task_id": task, "sample_idx": sample, "activation": vector, "timestamp": rows.timestamp}
            for task, sample, vector in columns
        ],
    }
