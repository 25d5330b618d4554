"""Tap files: the vectors of one batch and one tap as a safetensors file, and back again."""

import numpy as np

from pod_job.errors import JobError
from pod_job.formats.quantized import EightBit, Vectors, groups, is_eight_bit
from pod_job.formats.safetensors import Header, TensorSpec, read_header, view_tensor, write_parts
from pod_job.run_folder import layout
from pod_job.storage.checksums import Part, checksum

TENSOR = "activations"
SCALES = "scales"
"""The names of the tensors in a tap file; only vectors of eight bits have scales."""


def tap_parts(vectors: Vectors, tap: str, batch: int) -> list[Part]:
    """Returns the file as a list of buffers; the values are the last of them.

    Nothing here may vary between two writers of the batch (no time, no host): equal vectors make equal files. The
    header has the checksum of what follows it, so that a file shows by itself whether it is whole.
    """
    arrays = {TENSOR: vectors.values, SCALES: vectors.scales} if isinstance(vectors, EightBit) else {TENSOR: vectors}
    tensors = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    data = checksum(write_parts(tensors)[1:])
    metadata = {"format": str(layout.FORMAT), "tap": tap, "batch": str(batch), "crc32c": data.crc32c}
    return [*write_parts(tensors, metadata)]


def tap_tensors(header: Header, name: str) -> tuple[TensorSpec, TensorSpec | None]:
    """Returns where values and scales are. JobError naming the file (`name`) where it is not a tap file."""
    values, scales = header.tensors.get(TENSOR), header.tensors.get(SCALES)
    if values is None:
        raise JobError(f"{name}: has no tensor {TENSOR}; it is another program's file")
    if len(values.shape) != 2 or 0 in values.shape[1:]:
        raise JobError(f"{name}: holds {TENSOR} {list(values.shape)}, not [rows, width]; it is another program's file")
    expected = (values.shape[0], groups(values.shape[1]))
    if is_eight_bit(values.dtype) and (scales is None or scales.shape != expected):
        raise JobError(f"{name}: holds {values.dtype} without its scales; it is another program's file")
    return values, scales


def vectors_in(data: bytes, name: str) -> Vectors:
    """Returns the vectors in a tap file's bytes. JobError as `tap_tensors` raises it, or where the file is damaged."""
    header = read_header(lambda start, size: data[start : start + size], name, len(data))
    values, scales = tap_tensors(header, name)
    raw = np.frombuffer(data, np.uint8)
    if scales is None:
        return view_tensor(raw, values)
    return EightBit(view_tensor(raw, values), view_tensor(raw, scales))
