"""Reads activation pickles in the documented layout without trusting them: nothing that a file names is ever called."""

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pod_job.errors import JobError, first_line
from pod_job.formats.records import Record, convert
from pod_job.formats.safetensors import DTYPE_OF
from pod_job.interop.plain_pickle import CONTAINER_BYTES, load, most_bytes
from pod_job.storage.checksums import checksum
from pod_job.terminal import one_line


@dataclass(frozen=True)
class PickleItem:
    """One activation [D] with its provenance."""

    task_id: str
    sample_idx: int
    activation: np.ndarray
    timestamp: str


@dataclass(frozen=True)
class PickleContent:
    """The content of a pickle file: the activations of one layer in one batch."""

    layer: int
    activations: list[PickleItem]


def read_pickle(path: str | Path, crc32c: str | None = None) -> PickleContent:
    """Reads `{"layer": int, "activations": [{"task_id", "sample_idx", "activation" [D], "timestamp"}, ...]}`.

    Args:
        crc32c: CRC-32C of the file, where it was recorded.
    Raises:
        JobError: the file holds anything but that layout, or has another checksum; names the file and the reason.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise JobError(f"{path}: cannot be read ({error.strerror})") from error
    except MemoryError:
        raise JobError(
            f"{path}: its {Path(path).stat().st_size:,} bytes do not fit into memory; copy it again"
        ) from None
    if crc32c is not None and checksum([data]).crc32c != crc32c:
        raise JobError(f"{path}: is not the file that metadata.json describes: its crc32c differs; copy it again")
    stored = convert(load_plain(str(path), data), _Content, str(path), "it is not an activation pickle")
    items = [
        PickleItem(item.task_id, item.sample_idx, item.activation.values, item.timestamp) for item in stored.activations
    ]
    for number, item in enumerate(items):
        if item.activation.ndim != 1:
            shape = list(item.activation.shape)
            raise JobError(f"{path}: not an activation pickle: activation {number} has shape {shape}, not [hidden_dim]")
    return PickleContent(stored.layer, items)


BFLOAT16 = "bfloat16"
"""Stands for ml_dtypes.bfloat16, by which jax's arrays of that type are pickled."""


def load_plain(name: str, data: bytes) -> Any:
    """Returns what a pickle holds: containers, numbers, text and `StoredArray`; its size is in proportion to the file.

    Raises:
        JobError: it holds others, or the same values so often that a program that reads them runs out of memory.
    """
    try:
        value = load(data, _STAND_INS)
        _check_repetitions(value, most_bytes(len(data)))
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise JobError(
            f"{name}: not an activation pickle ({type(error).__name__}: {one_line(first_line(error))})"
        ) from error
    return value


def _check_repetitions(value: Any, most: int) -> None:
    """Raises ValueError where lists, dictionaries and arrays take more memory once each of them is by itself.

    A pickle names a value that it has already in two bytes.
    """
    pending, total = [value], 0
    while pending:
        value = pending.pop()
        if isinstance(value, StoredArray):
            total += value.values.nbytes
        elif isinstance(value, dict | list | tuple):
            inner = value.values() if isinstance(value, dict) else value
            total += CONTAINER_BYTES * (1 + len(value))
            pending += [item for item in inner if isinstance(item, dict | list | tuple | StoredArray)]
        if total > most:
            raise ValueError(f"it repeats its values to more than {most >> 20} MiB")


class _NumberType:
    """Stands for numpy.dtype: a type of numbers. NumPy's own would also build types of objects and records."""

    def __init__(self, code: str, *_: Any) -> None:
        if not isinstance(code, str):
            raise pickle.UnpicklingError("it has an array of no type")
        self.dtype = DTYPE_OF[BFLOAT16] if code == BFLOAT16 else np.dtype(code)
        if code != BFLOAT16 and self.dtype.kind not in "fiub":
            raise pickle.UnpicklingError(f"it has an array of {self.dtype}")

    def __setstate__(self, state: tuple) -> None:
        self.dtype = self.dtype.newbyteorder(">" if state[1] == ">" else "<")


class StoredArray:
    """Stands for numpy.ndarray: first made empty, then given its state, as pickled arrays are."""

    values: np.ndarray

    def __init__(self, *_: Any) -> None:
        self.values = np.empty(0)

    def __setstate__(self, state: tuple) -> None:
        _, shape, kind, fortran, data = state
        self.values = _from_bytes(data, kind, shape, "F" if fortran else "C").values


def _from_bytes(data: bytes, kind: _NumberType, shape: tuple[int, ...], order: Any) -> StoredArray:
    """Stands for numpy's _frombuffer, by which protocol 5 pickles arrays."""
    array = StoredArray()
    array.values = np.frombuffer(data, kind.dtype).reshape(shape, order=order)
    return array


def _number(kind: _NumberType, data: bytes) -> Any:
    return np.frombuffer(data, kind.dtype)[0].item()


_STAND_INS = {
    "ml_dtypes.bfloat16": BFLOAT16,
    "numpy.dtype": _NumberType,
    "numpy.ndarray": StoredArray,
    "numpy._core.multiarray._reconstruct": StoredArray,
    "numpy._core.multiarray.scalar": _number,
    "numpy._core.numeric._frombuffer": _from_bytes,
}


class _Item(Record, frozen=True):
    task_id: str
    sample_idx: int
    activation: StoredArray
    timestamp: str


class _Content(Record, frozen=True):
    layer: int
    activations: list[_Item]
