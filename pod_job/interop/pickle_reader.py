"""Reads activation pickles in the documented layout without trusting them: nothing that a file names is ever called."""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from pod_job.errors import JobError


def read_pickle(path: str | Path) -> dict[str, Any]:
    """`{"layer": int, "activations": [{"task_id", "sample_idx", "activation" [D], "timestamp"}, ...]}` from the file.

    Raises JobError, naming the file and the reason, for anything but that layout.
    """
    try:
        content = _PlainUnpickler(io.BytesIO(Path(path).read_bytes())).load()
    except OSError as error:
        raise JobError(f"{path}: cannot be read ({error.strerror})") from error
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise JobError(f"{path}: not an activation pickle ({type(error).__name__}: {error})") from error
    if problem := _problem(content):
        raise JobError(f"{path}: not an activation pickle: {problem}")
    for item in content["activations"]:
        item["activation"] = item["activation"].values
    return content


class _PlainUnpickler(pickle.Unpickler):
    """Python's own containers, and stand-ins of ours for the few names by which NumPy pickles an array of numbers."""

    def find_class(self, module: str, name: str) -> Any:
        # NumPy 1 calls numpy._core numpy.core.
        plain = f"{module.replace('numpy.core.', 'numpy._core.')}.{name}"
        if plain not in _STAND_INS:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which such a file has no use for")
        return _STAND_INS[plain]


class _NumberType:
    """For numpy.dtype: a type of numbers. NumPy's own would also build types of objects and records."""

    def __init__(self, code: str, *_: Any) -> None:
        self.dtype = np.dtype(str(code))
        if self.dtype.kind not in "fiub":
            raise pickle.UnpicklingError(f"it has an array of {self.dtype}")

    def __setstate__(self, state: tuple) -> None:
        self.dtype = self.dtype.newbyteorder(">" if state[1] == ">" else "<")


class _Array:
    """For numpy.ndarray: first made empty, then given its state, as pickled arrays are."""

    values: np.ndarray

    def __init__(self, *_: Any) -> None:
        self.values = np.empty(0)

    def __setstate__(self, state: tuple) -> None:
        _, shape, kind, fortran, data = state
        self.values = _from_bytes(data, kind, shape, "F" if fortran else "C").values


def _from_bytes(data: bytes | bytearray, kind: _NumberType, shape: tuple[int, ...], order: Any) -> _Array:
    """For numpy's _frombuffer, by which protocol 5 pickles arrays."""
    array = _Array()
    array.values = np.frombuffer(data, kind.dtype).reshape(shape, order=order).copy()
    return array


def _number(kind: _NumberType, data: bytes) -> Any:
    return np.frombuffer(data, kind.dtype)[0].item()


_STAND_INS = {
    "numpy.dtype": _NumberType,
    "numpy.ndarray": _Array,
    "numpy._core.multiarray._reconstruct": _Array,
    "numpy._core.multiarray.scalar": _number,
    "numpy._core.numeric._frombuffer": _from_bytes,
}
_ITEM = {"task_id": str, "sample_idx": int, "activation": _Array, "timestamp": str}


def _problem(content: Any) -> str:
    """What is wrong with the content; empty where nothing is."""
    if not isinstance(content, dict) or content.keys() != {"layer", "activations"}:
        return "it must have exactly layer and activations"
    if not isinstance(content["layer"], int) or not isinstance(content["activations"], list):
        return "layer must be an int and activations a list"
    for number, item in enumerate(content["activations"]):
        if not isinstance(item, dict) or item.keys() != _ITEM.keys():
            return f"activation {number} must have exactly {', '.join(_ITEM)}"
        if wrong := [key for key, kind in _ITEM.items() if not isinstance(item[key], kind)]:
            return f"activation {number}: {', '.join(wrong)} of another type"
        if item["activation"].values.ndim != 1:
            return f"activation {number} has shape {list(item['activation'].values.shape)}, not [hidden_dim]"
    return ""
