"""Converted checkpoints: our stacked weights as one orbax checkpoint, of which any slice can be read by itself.

`converted.json` is written last and names the folder of the weights: what is there without it was not finished.
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes  # noqa: F401  so that numpy knows bfloat16 by its name
import numpy as np

from pod_job.checkpoints.huggingface import ahead
from pod_job.environment import STORAGE_EMULATOR, TENSORSTORE_EMULATOR, TENSORSTORE_TOKEN
from pod_job.errors import JobError
from pod_job.models.weight_table import Weight
from pod_job.storage.folder import Readable

MANIFEST = "converted.json"
FORMAT = 1


@dataclass(frozen=True)
class Stored:
    """One weight as it is stored."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Converted:
    """A converted checkpoint; `name` and `fingerprint` are those of the checkpoint that it was made from."""

    folder: Readable
    name: str
    fingerprint: str
    path: str
    weights: dict[str, Stored]


def read_converted(folder: Readable) -> Converted | None:
    """What `converted.json` says; None where there is none."""
    try:
        content = json.loads(folder.read(MANIFEST))
        if content["format"] != FORMAT:
            raise JobError(f"model.path={folder.url}: {MANIFEST} has format {content['format']!r}, not {FORMAT}")
        weights = {name: Stored(tuple(one["shape"]), one["dtype"]) for name, one in content["weights"].items()}
        return Converted(folder, content["name"], content["fingerprint"], content["path"], weights)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise JobError(f"model.path={folder.url}: {MANIFEST} is damaged ({error}); convert the model again") from error


def check_converted(converted: Converted, table: Mapping[str, Weight]) -> None:
    """Raises JobError naming the first weight that is missing, misshapen or unknown."""
    where = f"model.path={converted.folder.url}"
    for name, weight in table.items():
        if name not in converted.weights:
            raise JobError(f"{where}: weight {name} {list(weight.shape)} is missing; convert the model again")
        if (shape := converted.weights[name].shape) != weight.shape:
            raise JobError(f"{where}: weight {name} is {list(shape)}, but config.json says {list(weight.shape)}")
    if extra := sorted(converted.weights.keys() - table.keys() - {"unembed"}):
        raise JobError(f"{where}: weight {extra[0]} is not part of this model; wrong config.json?")


def fill_from_converted(converted: Converted, name: str) -> Callable[[Weight, Mapping[Any, np.ndarray]], None]:
    """Reads the slices of a weight, layer by layer, as orbax does, but without waiting for other hosts."""

    def fill(weight: Weight, slices: Mapping[Any, np.ndarray]) -> None:
        stored = open_weight(converted, name)
        for box, array in slices.items():
            parts = split_layers(box, array) if weight.stacked else [(box, array)]
            spans = [tuple(slice(*span) for span in part) for part, _ in parts]
            for (_, target), data in zip(parts, ahead(lambda at: stored[at].read().result(), spans), strict=True):
                target[...] = data

    return fill


def split_layers(box: Any, array: np.ndarray) -> list[tuple[Any, np.ndarray]]:
    start, stop = box[0]
    return [(((layer, layer + 1), *box[1:]), array[layer - start : layer - start + 1]) for layer in range(start, stop)]


def open_weight(converted: Converted, name: str) -> Any:
    """The array of a weight; JobError where it is not as the manifest says."""
    import tensorstore

    base = f"{location(converted.folder)}/{converted.path}/"
    spec = {"driver": "zarr3", "kvstore": {"driver": "ocdbt", "base": base, "path": f"params.{name}/"}}
    where = f"model.path={converted.folder.url}: weight {name}"
    try:
        stored = tensorstore.open(spec, read=True, open=True).result()
    except (ValueError, OSError) as error:
        raise JobError(f"{where} cannot be read ({str(error).split(' [')[0]}); convert the model again") from error
    found = Stored(tuple(stored.shape), stored.dtype.name)
    if found != converted.weights[name]:
        raise JobError(f"{where} is {found}, {MANIFEST} says {converted.weights[name]}; convert the model again")
    return stored


def location(folder: Readable) -> str:
    """The folder's URL for tensorstore, which also is told of an emulator."""
    if (path := folder.local_path(".")) is not None:
        return f"file://{path.resolve()}"
    if endpoint := os.environ.get(STORAGE_EMULATOR):
        os.environ[TENSORSTORE_EMULATOR] = endpoint
        os.environ.setdefault(TENSORSTORE_TOKEN, "emulator")  # else it looks for real credentials
    return folder.url
