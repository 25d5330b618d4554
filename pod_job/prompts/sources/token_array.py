"""Pre-tokenized prompts: an array of token ids in a .npy or .safetensors file, mapped and not loaded.

n samples, S tokens of the longest.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pod_job.errors import JobError
from pod_job.formats.safetensors import map_tensors
from pod_job.prompts.sources.sample import BrokenTask, Key, Sample, Source

TOKENS = "tokens"
LENGTHS = "lengths"


def token_source(path: Path) -> Source:
    """Opens the rows of a two-dimensional array of ids; with a tensor `lengths` [n], row i ends after lengths[i].

    Args:
        path: a .npy file, or a .safetensors file with the tensor `tokens` [n, S] and, if wanted, `lengths`.
    Raises:
        JobError: a file that is missing, of another kind, or without such an array.
    """
    tokens, lengths = read_arrays(path)
    check_arrays(path, tokens, lengths)

    def keys() -> Iterator[Key]:
        return ((row,) for row in range(len(tokens)))

    def load(key: Key) -> Sample:
        (row,) = key
        where = f"tasks.path={path}, row {row}"
        length = tokens.shape[1] if lengths is None else int(lengths[row])
        if not 0 < length <= tokens.shape[1]:
            raise BrokenTask(f"{where}: {LENGTHS} says {length}, rows have 1..{tokens.shape[1]} tokens")
        return Sample(f"row_{row}", 0, np.array(tokens[row, :length]))

    return Source(keys, load)


def read_arrays(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns the file's tokens and, where it has them, lengths, memory-mapped."""
    if path.suffix == ".safetensors":
        tensors = map_tensors(path)
        if TOKENS not in tensors:
            raise JobError(f"tasks.path={path} has no tensor {TOKENS!r}; it has {', '.join(tensors) or 'none'}")
        return tensors[TOKENS], tensors.get(LENGTHS)
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False), None
    except (OSError, ValueError) as error:
        raise JobError(f"tasks.path={path} cannot be read ({error}); give a .npy or .safetensors file") from error


def check_arrays(path: Path, tokens: np.ndarray, lengths: np.ndarray | None) -> None:
    """Raises JobError where an array is not of integers, or has another shape."""
    if tokens.ndim != 2 or tokens.dtype.kind not in "iu":
        kind = f"{tokens.dtype} {list(tokens.shape)}"
        raise JobError(f"tasks.path={path}: {TOKENS} is {kind}; whole numbers [n, S] are needed")
    if lengths is not None and (lengths.shape != tokens.shape[:1] or lengths.dtype.kind not in "iu"):
        kind = f"{lengths.dtype} {list(lengths.shape)}"
        raise JobError(f"tasks.path={path}: {LENGTHS} is {kind}; whole numbers [{len(tokens)}] are needed")
