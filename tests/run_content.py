"""The content of a run as readers get it, and its file names."""

import json
from typing import Any

import numpy as np

from pod_job.reading.dataset import ActivationDataset
from pod_job.run_folder import layout
from pod_job.storage.folder import Folder


def content(folder: Folder) -> Any:
    """Returns all that a reader gets: in order, at random, shuffled, with rows and statistics."""
    readings = []
    for tap in json.loads(folder.read(layout.METADATA))["taps"]:
        data = ActivationDataset(folder.url, tap)
        numbers = np.random.default_rng(0).permutation(len(data))[:50]
        shuffled = [part.tolist() for part in data.batches(16, seed=3, buffer_rows=32, block_rows=8)]
        columns = {name: column.tolist() for name, column in data.rows(slice(None)).items()}
        readings.append(
            (tap, np.asarray(data[:]).tobytes(), data[numbers].tobytes(), shuffled, columns, data.statistics)
        )
    return readings


def names(folder: Folder) -> list[str]:
    return [name for name in folder.names(layout.ACTIVATIONS) if name != layout.METADATA]
