"""Reads shards, `shard_0001.pkl.gz`: pickles of several layers, with or without gzip, and their metadata.json.

Content: `{6 or "layer_6": [{"sample_idx", "activation" [D] or [S, D], ...}, ...], ...}`, see SHARD_FORMAT_SPEC.md of
https://github.com/kathir-ks/activation-extract. A shard ends when it is large enough, so a layer's last sample can be
in the next one. Nothing that a pickle names is called.
"""

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from pod_job.errors import JobError
from pod_job.formats.records import Count, convert, read_file
from pod_job.interop.pickle_reader import StoredArray, load_plain
from pod_job.run_folder.layout import layer_number
from pod_job.storage.folder import is_name
from pod_job.storage.open import open_folder

MOST_EXPANDED = 16
"""Times its size that a gzip file may have; activations come nowhere near it, and what does is made to fill memory."""
SMALL_BYTES = 64 << 20
"""A file may always expand to this size."""
NOT_RECORDED = "not recorded"


class ShardItem(msgspec.Struct, frozen=True):
    """One sample in one layer; what else a shard has of it is passed over."""

    sample_idx: int
    activation: StoredArray


class ShardContent(msgspec.Struct, frozen=True):
    """The samples of each layer."""

    layers: dict[int | str, list[ShardItem]]


class ShardEntry(msgspec.Struct, frozen=True):
    """A shard in metadata.json. The samples of each layer are in one of the last two, or not recorded."""

    filename: str
    layers: list[int] = []
    samples_per_layer: dict[str, Count] | None = None
    num_samples: Count | None = None

    def counts(self) -> dict[str, int] | None:
        """Returns the samples of each tap; None where they are not recorded."""
        if self.samples_per_layer is not None:
            return {tap_of(layer): count for layer, count in self.samples_per_layer.items()}
        return None if self.num_samples is None else {tap_of(layer): self.num_samples for layer in self.layers}


class ShardConfig(msgspec.Struct, frozen=True):
    """Source of the shards."""

    model_name: str = NOT_RECORDED


class ShardMetadata(msgspec.Struct, frozen=True):
    """metadata.json beside shards."""

    shards: list[ShardEntry] = []
    extraction_config: ShardConfig = ShardConfig()


@dataclass(frozen=True)
class Shard:
    """A shard, the name of its folder where that is not the one that is imported, and the samples of each tap."""

    path: Path
    folder: str
    counts: dict[str, int]


def shard_files(folder: Path) -> list[Path]:
    """Returns the shards in the folder and in the folders in it, of which each host of a pod may have one, in order."""
    files = [*folder.glob("shard_*.pkl"), *folder.glob("shard_*.pkl.gz")]
    files += [*folder.glob("*/shard_*.pkl"), *folder.glob("*/shard_*.pkl.gz")]
    return sorted(files, key=lambda path: (path.parent, len(path.name), path.name))


def read_shard_list(folder: Path) -> tuple[list[Shard], str]:
    """Returns the shards, and the name of their model; shards whose samples no metadata.json counts are read.

    Raises:
        JobError: a metadata.json that is damaged or names a shard that is not there, or a shard that cannot be read.
    """
    files = shard_files(folder)
    described = {parent: read_shard_metadata(parent) for parent in dict.fromkeys(path.parent for path in files)}
    shards = []
    for path in files:
        entries = [entry for entry in described[path.parent].shards if entry.filename == path.name]
        counts = entries[0].counts() if entries else None
        if counts is None:
            counts = {tap: len(items) for tap, items in read_shard(path).items()}
        shards.append(Shard(path, "" if path.parent == folder else path.parent.name, counts))
    names = [metadata.extraction_config.model_name for metadata in described.values()]
    return shards, names[0]


def read_shard_metadata(folder: Path) -> ShardMetadata:
    """Returns the content of metadata.json; nothing in it where there is none."""
    path = folder / "metadata.json"
    beside = open_folder(folder, "PICKLES", follow_links=True)
    try:
        metadata = read_file(beside, path.name, ShardMetadata, "it must be as it was written with the shards")
    except FileNotFoundError:
        return ShardMetadata()
    for entry in metadata.shards:
        name = entry.filename
        if not is_name(name) or "/" in name or not (folder / name).is_file():
            raise JobError(f"{path}: {name!r:.100} is not a shard beside it; copy it there, or import without it")
    return metadata


def read_shard(path: Path) -> dict[str, list[ShardItem]]:
    """Returns the items of each tap in a shard. JobError where the file holds anything else."""
    content = load_plain(str(path), expanded(path))
    shard = convert({"layers": content}, ShardContent, str(path), "it is not a shard of activations")
    items_of = {tap_of(layer): items for layer, items in shard.layers.items()}
    for tap, items in items_of.items():
        for item in items:
            shape = list(item.activation.values.shape)
            if len(shape) not in (1, 2):
                raise JobError(f"{path}: sample {item.sample_idx} of {tap} has shape {shape}, not [D] or [S, D]")
            if not shape[-1]:  # of such vectors a file of a few bytes can have any number
                raise JobError(f"{path}: sample {item.sample_idx} of {tap} has vectors of no numbers: {shape}")
    return items_of


def expanded(path: Path) -> bytes:
    """Returns the content of a file, without the compression of a `.gz`."""
    try:
        if path.suffix != ".gz":
            return path.read_bytes()
        most = max(SMALL_BYTES, MOST_EXPANDED * path.stat().st_size)
        with gzip.open(path) as file:
            data = file.read(most + 1)
    except (OSError, EOFError, MemoryError, zlib.error) as error:
        reason = str(error) or "it does not fit into memory"
        raise JobError(f"{path}: cannot be read ({reason}); copy it again") from error
    if len(data) > most:
        raise JobError(f"{path}: expands to more than {MOST_EXPANDED} times its size, which no activations do")
    return data


def tap_of(layer: int | str) -> str:
    """Returns `layer_6` for 6, "6" and "layer_6". JobError for what names no layer."""
    text = str(layer)
    tap = f"layer_{text}" if text.isdecimal() else text
    layer_number(tap)
    return tap


def vectors_of(item: ShardItem) -> np.ndarray:
    """Returns the item's vectors [S, D]; S is 1 where it has one."""
    values = item.activation.values
    return values[None] if values.ndim == 1 else values
