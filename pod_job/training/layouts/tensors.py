"""Tensors and records of an SAE that others may have written, read through the checked readers."""

import math
import zipfile
from collections.abc import Mapping
from io import BytesIO

import numpy as np

from pod_job.errors import JobError, first_line
from pod_job.formats.safetensors import map_tensors, read_header, view_tensor
from pod_job.storage.folder import Readable

MOST_EXPANDED = 8
"""Times its size that a compressed file may have; parameters come nowhere near it."""


def read_tensors(folder: Readable, name: str) -> dict[str, np.ndarray]:
    """Returns the tensors of a safetensors file. JobError where it is not there or not sound."""
    if path := folder.local_path(name):
        return map_tensors(path)
    where = f"{folder.url}/{name}"
    data = read_whole(folder, name)
    header = read_header(lambda start, size: data[start : start + size], where, len(data))
    raw = np.frombuffer(data, np.uint8)
    return {tensor: view_tensor(raw, spec) for tensor, spec in header.tensors.items()}


def read_whole(folder: Readable, name: str) -> bytes:
    try:
        return folder.read(name)
    except FileNotFoundError:
        raise JobError(f"{folder.url}/{name}: is not there; copy the whole folder of the SAE") from None


def read_npz(folder: Readable, name: str) -> dict[str, np.ndarray]:
    """Returns the arrays of an .npz file, whose sizes are checked before any is read; pickled ones are refused.

    Raises:
        JobError: it is not there or not sound.
    """
    where, data = f"{folder.url}/{name}", read_whole(folder, name)
    try:
        with zipfile.ZipFile(BytesIO(data)) as archive:
            members = archive.infolist()
            if sum(member.file_size for member in members) > MOST_EXPANDED * len(data):
                raise ValueError(f"it expands to more than {MOST_EXPANDED} times its size, which no parameters do")
            return {member.filename.removesuffix(".npy"): read_npy(archive, member) for member in members}
    except Exception as error:  # of zip files, of arrays, and of Python's tokenizer, by which numpy reads headers
        raise JobError(f"{where}: not a usable .npz file: {first_line(error)}; copy it again") from error


def read_npy(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """Returns an array of an .npz file. ValueError where its header and its size do not agree."""
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, by_columns, dtype = read(file)
        size = math.prod(shape) * dtype.itemsize
        if dtype.hasobject or size != member.file_size - file.tell():
            raise ValueError(f"{member.filename:.60}: {dtype} {list(shape)} does not go with its size")
        return np.frombuffer(file.read(size), dtype).reshape(shape, order="F" if by_columns else "C")


def float32(tensors: Mapping[str, np.ndarray], names: Mapping[str, str], where: str) -> dict[str, np.ndarray]:
    """Returns our parameters as float32 by name: `names` has the name of each among the tensors.

    Raises:
        JobError: one is missing, or is not of floats.
    """
    if missing := [name for name in names.values() if name not in tensors]:
        raise JobError(f"{where}: the tensor {missing[0]} is missing; it has {', '.join(sorted(tensors))[:200]}")
    for name in names.values():
        # ml_dtypes' types are of kind V.
        if not np.can_cast(tensors[name].dtype, np.float64, "same_kind") and tensors[name].dtype.kind != "V":
            raise JobError(f"{where}: {name} is of {tensors[name].dtype}; parameters are floats")
    return {ours: np.array(tensors[theirs], np.float32) for ours, theirs in names.items()}
