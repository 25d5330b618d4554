"""Pre-tokenized prompts: an array of token ids in a .npy or .safetensors file, mapped and not loaded.

n samples, S tokens of the longest.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pod_job.errors import JobError
from pod_job.formats.safetensors import map_tensors
from pod_job.prompts.sources.record import unmasked
from pod_job.prompts.sources.sample import BrokenTask, Key, Reason, Sample, Source
from pod_job.prompts.sources.watched import WatchedFiles

TOKENS = ("tokens", "input_ids")
LENGTHS = "lengths"
MASK = "attention_mask"


@dataclass(frozen=True)
class TokenArrays:
    """Ids [n, S], and where the file has them `lengths` [n], or a `mask` [n, S] with 0 for padding."""

    tokens: np.ndarray
    lengths: np.ndarray | None = None
    mask: np.ndarray | None = None


def token_source(path: Path) -> Source:
    """Opens the rows of a two-dimensional array of ids, without their padding.

    Args:
        path: a .npy file, or a .safetensors file with the tensor `tokens` (or `input_ids`) [n, S] and, if wanted,
            either `lengths` [n], by which row i ends after lengths[i], or `attention_mask` [n, S].
    Raises:
        JobError: a file that is missing, of another kind, or without such arrays.
    """
    files = WatchedFiles([path])  # before anything is read
    arrays = read_arrays(path)
    check_arrays(path, arrays)
    tokens = arrays.tokens

    def keys() -> Iterator[Key]:
        return ((row,) for row in range(len(tokens)))

    def load(key: Key) -> Sample:
        (row,) = key
        where, ids = f"tasks.path={path}, row {row}", np.array(tokens[row])
        if arrays.mask is not None:
            ids = unmasked(where, ids, arrays.mask[row])
        elif arrays.lengths is not None:
            length = int(arrays.lengths[row])
            if not 0 < length <= len(ids):
                reason = Reason.blank if length == 0 else Reason.broken
                raise BrokenTask(f"{where}: {LENGTHS} says {length}, rows have 1..{len(ids)} tokens", reason)
            ids = ids[:length]
        return Sample(f"row_{row}", 0, ids)

    return Source(keys, load, files)


def read_arrays(path: Path) -> TokenArrays:
    """Returns the arrays of the file, memory-mapped."""
    if path.suffix == ".safetensors":
        tensors = map_tensors(path)
        name = next((name for name in TOKENS if name in tensors), None)
        if name is None:
            there = ", ".join(tensors) or "none"
            raise JobError(f"tasks.path={path} has no tensor {' or '.join(map(repr, TOKENS))}; it has {there}")
        return TokenArrays(tensors[name], tensors.get(LENGTHS), tensors.get(MASK))
    try:
        tokens = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise JobError(f"tasks.path={path} cannot be read ({error}); give a .npy or .safetensors file") from error
    if not isinstance(tokens, np.ndarray):
        raise JobError(f"tasks.path={path} holds several arrays; give a .npy or .safetensors file")
    return TokenArrays(tokens)


def check_arrays(path: Path, arrays: TokenArrays) -> None:
    """Raises JobError where an array is not of integers, or has another shape."""
    tokens, lengths, mask = arrays.tokens, arrays.lengths, arrays.mask
    if tokens.ndim != 2 or tokens.dtype.kind not in "iu":
        raise JobError(f"tasks.path={path}: {TOKENS[0]} is {kind(tokens)}; whole numbers [n, S] are needed")
    if lengths is not None and (lengths.shape != tokens.shape[:1] or lengths.dtype.kind not in "iu"):
        raise JobError(f"tasks.path={path}: {LENGTHS} is {kind(lengths)}; whole numbers [{len(tokens)}] are needed")
    if mask is not None and mask.shape != tokens.shape:
        raise JobError(f"tasks.path={path}: {MASK} is {kind(mask)}; the shape {list(tokens.shape)} is needed")
    if mask is not None and lengths is not None:
        raise JobError(f"tasks.path={path} has {LENGTHS} and {MASK}, which may differ; leave one of them out")


def kind(array: np.ndarray) -> str:
    """Returns dtype and shape, for messages."""
    return f"{array.dtype} {list(array.shape)}"
