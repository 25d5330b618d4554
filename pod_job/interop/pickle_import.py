"""The pickle files of the extraction document as a run: the way back from `pod-job export`.

The metadata.json beside the files says which there are. They do not tell positions and tokens, which become -1; of
the times in a batch the first is kept, and float32 unless another dtype is asked for. Nothing that a pickle names is
ever called.

In a run all batches but the last are of one size. Pickles need not be: each host of a pod may have numbered its own
from 1 and ended with a short one. Then they are put one after the other and cut anew at the size of the largest.
"""

import itertools
import json
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
from pod_job.interop.pickle_reader import read_pickle
from pod_job.run_folder import layout
from pod_job.run_folder.commit import Batch, commit_batch, wrong_fields
from pod_job.run_folder.identity import claim
from pod_job.run_folder.layout import committed
from pod_job.storage.checksums import checksum
from pod_job.storage.open import open_folder

FLOATS = ("float32", "bfloat16", "float16")
UNKNOWN = -1
"""Position and token of an imported row."""
_FIELDS = {"model_name": str, "layers_extracted": list, "hidden_dim": int, "total_samples": int, "batches": list}
_ENTRY = {"batch_id": int, "layer": str, "file": str, "n_samples": int}

Source = dict[str, dict[str, Any]]
"""A batch of the pickles: per tap its entry in metadata.json."""
Piece = tuple[int, slice]
"""The number of a source, and which of its items."""

_TOLD = ("task_id", "sample_idx", "timestamp")


@dataclass(frozen=True)
class Items:
    """What the pickles of a source hold."""

    task_id: list[str]
    sample_idx: list[int]
    timestamp: list[str]
    taps: dict[str, np.ndarray]


def import_pickles(pickles: str | Path, out_dir: str | Path, dtype: str = "float32") -> dict[str, Any]:
    """Write the run and return its metadata; two batches are in memory at a time, and what is there already stays.

    Raises JobError for a metadata.json or a pickle that is missing or not as documented, layers of a batch with other
    samples than its first, batches to be cut anew that are not as large as metadata.json says, or an `out_dir` that
    belongs to another run.
    """
    if dtype not in FLOATS:
        raise JobError(f"dtype={dtype}: not one to import to; use {', '.join(FLOATS)}")
    folder, out = Path(pickles), open_folder(out_dir)
    described = _read_metadata(folder / "metadata.json")
    sources = _sources(described, folder / "metadata.json")
    sizes, cuts = _cuts(sources)
    claim(out, _identity(described, list(sources[0]), sizes, dtype))
    done, cut_anew = committed(out), sizes != [_samples(source) for source in sources]

    @lru_cache(maxsize=1)  # where batches are cut anew, a source can end one and begin the next
    def read(number: int) -> Items:
        items = _read_source(folder, sources[number], described["hidden_dim"], DTYPE_OF[dtype])
        if cut_anew and len(items.task_id) != _samples(sources[number]):
            raise JobError(
                f"{folder}/{_first_file(sources[number])}: has {len(items.task_id)} activations, metadata.json says "
                f"n_samples={_samples(sources[number])}; batches of unequal size must have one activation per sample"
            )
        return items

    for number, (size, pieces) in enumerate(zip(sizes, cuts, strict=True), 1):
        if number not in done:
            commit_batch(out, _batch(number, size, [_piece(read(source), of) for source, of in pieces]), host=0)
    return merge(out)


def _read_metadata(path: Path) -> dict[str, Any]:
    try:
        described = json.loads(path.read_bytes())
    except OSError as error:
        raise JobError(f"{path}: cannot be read ({error.strerror}); it must lie beside the pickle files") from error
    except ValueError as error:
        raise JobError(f"{path}: not JSON ({error})") from error
    if wrong := wrong_fields(described, _FIELDS):
        raise JobError(f"{path}: {wrong} missing or of another type; it must be as the document says")
    for number, entry in enumerate(described["batches"]):
        if wrong := wrong_fields(entry, _ENTRY):
            raise JobError(f"{path}: {wrong} of batches[{number}] missing or of another type")
        place = PurePosixPath(entry["file"])
        if not place.name or place.is_absolute() or ".." in place.parts:
            raise JobError(
                f"{path}: file={entry['file']!r} of batches[{number}] is not the name of a file beside it or in a "
                "folder there"
            )
    return described


def _sources(described: dict[str, Any], path: Path) -> list[Source]:
    """The batches of all hosts; where each host numbered its own, a number comes once for each host that has it."""
    found: dict[tuple[int, int], Source] = {}
    met: Counter[tuple[int, str]] = Counter()
    for entry in described["batches"]:
        key = entry["batch_id"], entry["layer"]
        found.setdefault((met[key], entry["batch_id"]), {})[entry["layer"]] = entry
        met[key] += 1
    files = Counter(PurePosixPath(entry["file"]) for entry in described["batches"])
    if twice := [file for file, times in files.items() if times > 1]:
        raise JobError(f"{path}: lists {twice[0]} twice; name each file once, or its rows would be there twice")
    for _, places in itertools.groupby(sorted(found), key=lambda place: place[0]):
        numbers = [number for _, number in places]
        if numbers != list(range(1, len(numbers) + 1)):
            raise JobError(f"{path}: batch_id must run from 1 without gaps, found {numbers[:5]}")
    if not any(entry["n_samples"] > 0 for entry in described["batches"]):
        raise JobError(f"{path}: batches has no samples; it must list the pickle files")
    first = found[0, 1]
    for (_, number), source in found.items():
        if source.keys() != first.keys():
            raise JobError(f"{path}: batch {number} has other layers than batch 1, which has {', '.join(first)}")
        if len({entry["n_samples"] for entry in source.values()}) > 1 or _samples(source) < 0:
            raise JobError(f"{path}: n_samples of batch {number} must be one number, 0 or more, for all its layers")
    return [{tap: found[place][tap] for tap in first} for place in sorted(found)]


def _samples(source: Source) -> int:
    return next(iter(source.values()))["n_samples"]


def _first_file(source: Source) -> str:
    return next(iter(source.values()))["file"]


def _cuts(sources: Sequence[Source]) -> tuple[list[int], list[list[Piece]]]:
    """The samples of each batch of the run, and the pieces that make it: whole sources where their sizes allow it."""
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


def _identity(described: dict[str, Any], taps: list[str], sizes: list[int], dtype: str) -> dict[str, Any]:
    """What the imported activations depend on: all that is known of it."""
    listed = checksum([json.dumps(described["batches"], sort_keys=True).encode()]).crc32c
    return {
        "model": {"name": described["model_name"], "hidden_dim": described["hidden_dim"]},
        "tasks": {"format": "pickles", "fingerprint": listed, "samples": sum(sizes)},
        "taps": taps,
        "positions": "imported",
        "dtype": dtype,
        "save_every_n_samples": sizes[0],
    }


def _batch(number: int, n_samples: int, pieces: Sequence[Items]) -> Batch:
    joined = {name: [value for items in pieces for value in getattr(items, name)] for name in _TOLD}
    times = joined.pop("timestamp")
    taps = {}
    for tap in pieces[0].taps:
        vectors = [items.taps[tap] for items in pieces]
        if len(widths := {each.shape[1] for each in vectors}) > 1:
            raise JobError(f"batches of {tap} have activations of {sorted(widths)} numbers; they must be equally long")
        taps[tap] = np.concatenate(vectors)
    unknown = dict.fromkeys(("position", "token_id"), [UNKNOWN] * len(times))
    return Batch(number, n_samples, rows_table.from_columns(joined | unknown, times[0] if times else ""), taps)


def _piece(items: Items, of: slice) -> Items:
    taps = {tap: vectors[of] for tap, vectors in items.taps.items()}
    return Items(items.task_id[of], items.sample_idx[of], items.timestamp[of], taps)


def _read_source(folder: Path, source: Source, hidden_dim: int, dtype: np.dtype) -> Items:
    told: list[list[Any]] = []
    taps = {}
    for tap, entry in source.items():
        items = _items(folder / entry["file"], tap)
        here = [[item[name] for item in items] for name in _TOLD]
        if told and told[:2] != here[:2]:
            name = folder / entry["file"]
            raise JobError(f"{name}: has other samples than {_first_file(source)}, or another order")
        told = told or here
        # A batch without rows does not tell how wide they would be.
        vectors = np.stack([item["activation"] for item in items]) if items else np.zeros((0, hidden_dim))
        taps[tap] = vectors.astype(dtype)
    return Items(told[0], told[1], told[2], taps)


def _items(path: Path, tap: str) -> list[dict[str, Any]]:
    content = read_pickle(path)
    if content["layer"] != layout.layer_number(tap):
        raise JobError(f"{path}: is of layer {content['layer']}, metadata.json says {tap}")
    items = content["activations"]
    if len({item["activation"].shape for item in items}) > 1:
        raise JobError(f"{path}: its activations differ in length")
    return items
