"""What is in a run, as readers see it and as it lies there."""

import json
from typing import Any

import numpy as np

from pod_job.reading.dataset import ActivationDataset
from pod_job.run_folder import layout
from pod_job.storage.folder import Folder


def content(folder: Folder) -> Any:
    """All that a reader gets to see, in all the orders in which it reads."""
    found = []
    for tap in json.loads(folder.read(layout.METADATA))["taps"]:
        data = ActivationDataset(folder.url, tap)
        numbers = np.random.default_rng(0).permutation(len(data))[:50]
        shuffled = [part.tolist() for part in data.batches(16, seed=3, buffer_rows=32, block_rows=8)]
        columns = {name: column.tolist() for name, column in data.rows(slice(None)).items()}
        found.append((tap, np.asarray(data[:]).tobytes(), data[numbers].tobytes(), shuffled, columns, data.statistics))
    return found


def names(folder: Folder) -> list[str]:
    return [name for name in folder.names(layout.ACTIVATIONS) if name != layout.METADATA]
