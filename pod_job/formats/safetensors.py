"""Safetensors files, written without copying the data and read without trusting the file.

Format: 8 bytes little-endian header length, a JSON header, then the tensors' bytes without gaps
(https://github.com/huggingface/safetensors#format). Ours pad the header so that data begins on a page.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from pod_job.errors import JobError
from pod_job.formats.json_text import parse_json

DTYPES: dict[str, np.dtype] = {
    name: np.dtype(dtype)
    for name, dtype in {
        "BOOL": np.bool_,
        "U8": np.uint8,
        "I8": np.int8,
        "U16": "<u2",
        "I16": "<i2",
        "U32": "<u4",
        "I32": "<i4",
        "U64": "<u8",
        "I64": "<i8",
        "F16": "<f2",
        "BF16": ml_dtypes.bfloat16,
        "F32": "<f4",
        "F64": "<f8",
        "F8_E4M3": ml_dtypes.float8_e4m3fn,
        "F8_E5M2": ml_dtypes.float8_e5m2,
        "F8_E8M0": ml_dtypes.float8_e8m0fnu,
        "C64": "<c8",
    }.items()
}
DTYPE_OF: dict[str, np.dtype] = {str(dtype): dtype for dtype in DTYPES.values()}
"""Dtypes by the names that configs and records use: `bfloat16`, `float32`."""
_CODES = {dtype: code for code, dtype in DTYPES.items()}
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library


@dataclass(frozen=True)
class TensorSpec:
    """Location of a tensor: bytes [start, stop) of the file."""

    dtype: np.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Header:
    """A validated header: tensors in the order of their data, and the offset at which data begins."""

    tensors: dict[str, TensorSpec]
    data_start: int
    metadata: dict[str, str]


def write_parts(
    tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None, pad_to: int = 4096
) -> list[bytes | memoryview]:
    """Returns the file as buffers: the header, then a view of each array's memory (copied only if not contiguous).

    The header is padded with spaces so that data begins at a multiple of `pad_to` bytes.
    """
    # Wide types first, so that every tensor is aligned to the size of its type.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    header = header_bytes([(name, array.dtype, array.shape) for name, array in ordered], metadata, pad_to)
    little = (np.ascontiguousarray(array, array.dtype.newbyteorder("<")) for _, array in ordered)
    return [header, *(array.reshape(-1).view(np.uint8).data for array in little)]


def header_bytes(
    tensors: Sequence[tuple[str, np.dtype, Sequence[int]]],
    metadata: Mapping[str, str] | None = None,
    pad_to: int = 4096,
) -> bytes:
    """Returns the part of a file before its data.

    Args:
        tensors: names, dtypes and shapes, in the order of their data.
    Raises:
        TypeError: safetensors has no such dtype.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, dtype, shape in tensors:
        code = _CODES.get(dtype.newbyteorder("<"))
        if code is None:
            raise TypeError(f"{name}: safetensors has no {dtype}")
        stop = offset + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [offset, stop]}
        offset = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % pad_to)
    return len(text).to_bytes(8, "little") + text


def read_header(read: Callable[[int, int], bytes], name: str = "safetensors file", size: int | None = None) -> Header:
    """Returns the checked header of a file.

    Args:
        read: `read(start, size)` returns bytes of the file, fewer at its end.
        name: name of the file in errors.
        size: of the file in bytes, where known: then it must be the size that the header describes.
    Raises:
        JobError: the header, or the file's size, is not sound.
    """
    prefix = read(0, 8)
    if len(prefix) < 8:
        raise _bad(name, f"only {len(prefix)} bytes long")
    length = int.from_bytes(prefix, "little")
    if not 2 <= length <= MAX_HEADER_BYTES or (size is not None and 8 + length > size):
        raise _bad(name, f"its header would be {length} bytes long")
    text = read(8, length)
    if len(text) < length:
        raise _bad(name, f"truncated: {len(text)} of {length} header bytes are there")
    try:
        entries = parse_json(text.decode(), MAX_HEADER_BYTES, strict=True)
    except ValueError as error:
        raise _bad(name, f"its header is not JSON ({error})") from error
    if not isinstance(entries, dict):
        raise _bad(name, "its header is not a JSON object")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _bad(name, "__metadata__ is not a table of strings")
    data_start = 8 + length
    specs = [(tensor, _spec(name, tensor, entry, data_start)) for tensor, entry in entries.items()]
    specs.sort(key=lambda item: (item[1].start, item[1].stop))
    _check_layout(name, specs, data_start, size)
    return Header(dict(specs), data_start, metadata)


def map_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """Returns read-only arrays on the file's memory map. Raises JobError where the file is not sound."""
    path = Path(path)
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            header = read_header(lambda start, count: _read_at(file, start, count), str(path), size)
    except OSError as error:
        raise JobError(f"{path}: cannot be read ({error.strerror})") from error
    raw = np.asarray(np.memmap(path, np.uint8, "r"))
    return {name: view_tensor(raw, spec) for name, spec in header.tensors.items()}


def view_tensor(raw: np.ndarray, spec: TensorSpec) -> np.ndarray:
    """Returns the tensor as a view of `raw`, all bytes of the file as uint8."""
    return raw[spec.start : spec.stop].view(spec.dtype).reshape(spec.shape)


def _read_at(file: Any, start: int, count: int) -> bytes:
    file.seek(start)
    return file.read(count)


def _spec(file: str, tensor: str, entry: Any, data_start: int) -> TensorSpec:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise _bad(file, f"tensor {tensor!r} needs exactly dtype, shape and data_offsets")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(code, str) or code not in DTYPES:
        raise _bad(file, f"tensor {tensor!r} has unknown dtype {code!r}")
    if not _sizes(shape) or not _sizes(offsets) or len(offsets) != 2:
        raise _bad(file, f"tensor {tensor!r}: shape and data_offsets must be lists of sizes")
    expected = math.prod(shape) * DTYPES[code].itemsize
    if offsets[1] - offsets[0] != expected:
        raise _bad(file, f"tensor {tensor!r}: {code} {shape} takes {expected} bytes, data_offsets span {offsets}")
    return TensorSpec(DTYPES[code], tuple(shape), data_start + offsets[0], data_start + offsets[1])


def _check_layout(file: str, specs: list[tuple[str, TensorSpec]], data_start: int, size: int | None) -> None:
    end = data_start
    for tensor, spec in specs:
        if spec.start != end:
            raise _bad(file, f"tensor {tensor!r} begins at byte {spec.start} and not at {end}: a gap or an overlap")
        end = spec.stop
    if size is not None and size != end:
        problem = "truncated" if size < end else "it has bytes no tensor owns"
        raise _bad(file, f"{problem}: {size} bytes long, its header describes {end}")


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 62 for item in value)


def _bad(name: str, reason: str) -> JobError:
    return JobError(f"{name}: not a usable safetensors file: {reason}")
