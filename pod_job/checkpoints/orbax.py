"""Converted checkpoints: our stacked weights as one orbax checkpoint, of which any slice can be read by itself.

`converted.json` is written last and names the folder of the weights: a folder without it is unfinished.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes  # noqa: F401  so that numpy knows bfloat16 by its name
import msgspec
import numpy as np

from pod_job.checkpoints.content import checksums
from pod_job.checkpoints.huggingface import map_ahead
from pod_job.environment import STORAGE_EMULATOR, TENSORSTORE_EMULATOR, TENSORSTORE_TOKEN
from pod_job.errors import JobError
from pod_job.formats.records import decode, read_bounded
from pod_job.models.weight_table import Weight
from pod_job.storage.folder import Readable, check_name

MANIFEST = "converted.json"
FORMAT = 1

Box = tuple[tuple[int, int], ...]
"""A slice of an array: start and stop of each dimension."""
Fill = Callable[[Weight, Mapping[Box, np.ndarray]], None]
"""Reads each slice of a weight into the array that waits for it."""


class StoredWeight(msgspec.Struct, frozen=True):
    """Shape and dtype of one weight as it is stored."""

    shape: tuple[int, ...]
    dtype: str


class Manifest(msgspec.Struct, frozen=True):
    """Content of `converted.json`; `name` and `fingerprint` are those of the checkpoint that it was made from.

    `source` has the checksums of that checkpoint's files, `files` those of the files under `path`; both are empty where
    a version before 0.2 converted.
    """

    format: int
    name: str
    fingerprint: str
    path: str
    weights: dict[str, StoredWeight]
    source: dict[str, str] = msgspec.field(default_factory=dict)
    files: dict[str, str] = msgspec.field(default_factory=dict)


@dataclass(frozen=True)
class Converted:
    """A converted checkpoint and the folder that it lies in."""

    folder: Readable
    manifest: Manifest


def read_converted(folder: Readable) -> Converted | None:
    """Returns the folder's converted checkpoint; None where it has no `converted.json`."""
    try:
        content = read_bounded(folder, MANIFEST)
    except FileNotFoundError:
        return None
    where = f"model.path={folder.url}: {MANIFEST} is damaged"
    manifest = decode(content, Manifest, where, "convert the model again")
    if manifest.format != FORMAT:
        raise JobError(f"model.path={folder.url}: {MANIFEST} has format {manifest.format!r}, not {FORMAT}")
    check_name(manifest.path, folder.url)
    return Converted(folder, manifest)


def check_converted(converted: Converted, table: Mapping[str, Weight]) -> None:
    """Raises JobError naming the first weight that is missing, misshapen or unknown."""
    where, stored = f"model.path={converted.folder.url}", converted.manifest.weights
    for name, weight in table.items():
        if name not in stored:
            raise JobError(f"{where}: weight {name} {list(weight.shape)} is missing; convert the model again")
        if (shape := stored[name].shape) != weight.shape:
            raise JobError(f"{where}: weight {name} is {list(shape)}, but config.json says {list(weight.shape)}")
    if extra := sorted(stored.keys() - table.keys() - {"unembed"}):
        raise JobError(f"{where}: weight {extra[0]} is not part of this model; wrong config.json?")


def check_content(converted: Converted) -> None:
    """Raises JobError where the weights are no longer those that the conversion wrote; reads all of them at most."""
    recorded = {f"{converted.manifest.path}/{name}": value for name, value in converted.manifest.files.items()}
    where = f"model.path={converted.folder.url}"
    try:
        present = checksums(converted.folder, list(recorded))
    except FileNotFoundError as error:
        raise JobError(f"{where}: {error.filename or error} is missing; convert the model again") from error
    for name, value in recorded.items():
        if present[name] != value:
            raise JobError(f"{where}: {name} is {present[name]}, {MANIFEST} says {value}; convert the model again")


def fill_from_converted(converted: Converted, name: str) -> Fill:
    """Returns a function that reads the slices of a weight, layer by layer, without waiting for other hosts."""

    def fill(weight: Weight, slices: Mapping[Box, np.ndarray]) -> None:
        stored = open_weight(converted, name)
        for box, array in slices.items():
            parts = split_layers(box, array) if weight.stacked else [(box, array)]
            spans = [tuple(slice(*span) for span in part) for part, _ in parts]
            for (_, target), data in zip(parts, map_ahead(lambda at: stored[at].read().result(), spans), strict=True):
                target[...] = data

    return fill


def split_layers(box: Box, array: np.ndarray) -> list[tuple[Box, np.ndarray]]:
    """Returns the slice of each layer by itself."""
    start, stop = box[0]
    return [(((layer, layer + 1), *box[1:]), array[layer - start : layer - start + 1]) for layer in range(start, stop)]


def open_weight(converted: Converted, name: str) -> Any:
    """Opens the array of a weight; JobError where it is not as the manifest says."""
    import tensorstore

    base = f"{location(converted.folder)}/{converted.manifest.path}/"
    spec = {"driver": "zarr3", "kvstore": {"driver": "ocdbt", "base": base, "path": f"params.{name}/"}}
    where = f"model.path={converted.folder.url}: weight {name}"
    try:
        stored = tensorstore.open(spec, read=True, open=True).result()
    except (ValueError, OSError) as error:
        raise JobError(f"{where} cannot be read ({str(error).split(' [')[0]}); convert the model again") from error
    actual, recorded = StoredWeight(tuple(stored.shape), stored.dtype.name), converted.manifest.weights[name]
    if actual != recorded:
        raise JobError(f"{where} is {actual}, {MANIFEST} says {recorded}; convert the model again")
    return stored


def location(folder: Readable) -> str:
    """Returns the folder's URL for tensorstore, and points it to an emulator where one is set."""
    if (path := folder.local_path(".")) is not None:
        return f"file://{path.resolve()}"
    if endpoint := os.environ.get(STORAGE_EMULATOR):
        os.environ[TENSORSTORE_EMULATOR] = endpoint
        os.environ.setdefault(TENSORSTORE_TOKEN, "emulator")  # else it looks for real credentials
    return folder.url
