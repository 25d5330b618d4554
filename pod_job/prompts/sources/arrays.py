"""Pre-tokenized prompts: arrays of token ids in .npy, .npz, .safetensors or .bin files, read in ranges.

n samples, S tokens of the longest.
"""

import ast
import math
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64

from pod_job.config.tasks import TasksConfig
from pod_job.errors import JobError, first_line
from pod_job.formats.safetensors import read_header
from pod_job.prompts.sources.blocks import BlockCache, Counted, FileReader
from pod_job.prompts.sources.index import FileEntry
from pod_job.prompts.sources.places import DataFile, RangedFile, crc32c_of, unreadable
from pod_job.prompts.sources.record import unmasked
from pod_job.prompts.sources.sample import BrokenTask, Reason, Sample

ROWS = 64
"""Rows that are read at a time."""
TOKENS = ("tokens", "input_ids")
LENGTHS = "lengths"
MASK = "attention_mask"
NPY_MAGIC = b"\x93NUMPY"


@dataclass(frozen=True)
class ArraySpec:
    """An array within a file: its bytes from `start` on, in the order of C."""

    dtype: np.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def row_bytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape[1:])

    @property
    def stop(self) -> int:
        return self.start + math.prod(self.shape) * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


class ArrayReader(FileReader):
    """Rows of an array of ids [n, S], without their padding; of a flat one, pieces of `tasks.row_tokens`.

    Beside `tokens` (or `input_ids`) a file may have `lengths` [n], by which row i ends after lengths[i], or
    `attention_mask` [n, S] with 0 for padding.
    """

    def __init__(
        self, file: DataFile, entry: FileEntry, cache: BlockCache, alone: bool, config: TasksConfig | None = None
    ) -> None:
        self.config = config or TasksConfig(path=entry.url)
        super().__init__(file, entry, cache, alone)

    def rows_at_a_glance(self) -> int:
        return self.rows_of(self.arrays()["tokens"])

    def count(self) -> Counted:
        arrays = self.arrays()
        checksum = self.entry.checksum or crc32c_of(self.file, self.entry.size)
        return Counted(self.rows_of(arrays["tokens"]), b"", checksum)

    def block_starts(self) -> Int64[np.ndarray, " n"]:
        self.specs = self.arrays()
        rows = self.entry.samples or 0
        return np.append(np.arange(0, rows, ROWS), rows).astype(np.int64)

    def rows_of(self, spec: ArraySpec) -> int:
        tokens = self.config.row_tokens
        return spec.shape[0] if len(spec.shape) == 2 else -(-spec.shape[0] // (tokens or 1))

    def stream(self, block: int, stop: int) -> Iterator["Rows"]:
        for number in range(block, stop):
            start, end = self.starts[number : number + 2].tolist()
            parts = {name: self.part(spec, start, end) for name, spec in self.specs.items()}
            yield Rows(parts["tokens"], parts.get(LENGTHS), parts.get(MASK))

    def part(self, spec: ArraySpec, start: int, end: int) -> np.ndarray:
        width = spec.row_bytes if len(spec.shape) == 2 or spec is not self.specs["tokens"] else 0
        if not width:  # flat
            tokens = self.config.row_tokens or 1
            size, begin = spec.dtype.itemsize, start * tokens
            count = min(end * tokens, spec.shape[0]) - begin
            data = self.file.read(spec.start + begin * size, count * size)
            flat = np.full((end - start) * tokens, -1, np.int64)
            flat[:count] = np.frombuffer(data, spec.dtype)
            return flat.reshape(-1, tokens)
        data = self.file.read(spec.start + start * width, (end - start) * width)
        if len(data) < (end - start) * width:
            raise unreadable(self.entry.url, "it ends before its last row")
        return np.frombuffer(data, spec.dtype).reshape(end - start, *spec.shape[1:])

    def sample(self, block: "Rows", index: int, row: int) -> Sample:
        where, ids = f"{self.where}, row {row}", np.array(block.tokens[index])
        if len(self.specs["tokens"].shape) == 1:
            left = self.specs["tokens"].shape[0] - row * len(ids)
            ids = ids[:left]
        if block.mask is not None:
            ids = unmasked(where, ids, block.mask[index])
        elif block.lengths is not None:
            length = int(block.lengths[index])
            if not 0 < length <= len(ids):
                reason = Reason.blank if length == 0 else Reason.broken
                raise BrokenTask(f"{where}: {LENGTHS} says {length}, rows have 1..{len(ids)} tokens", reason)
            ids = ids[:length]
        return Sample(self.task_id(f"row_{row}"), 0, ids)

    def head(self, count: int) -> Iterator[Sample | BrokenTask]:
        self.specs = self.arrays()
        rows = min(count, self.rows_of(self.specs["tokens"]))
        self.starts = np.append(np.arange(0, rows, ROWS), rows)
        for number, block in enumerate(self.stream(0, len(self.starts) - 1)):
            for index in range(len(block.tokens)):
                yield self.read(block, index, int(self.starts[number]) + index)

    def arrays(self) -> dict[str, ArraySpec]:
        """Returns the checked arrays of the file: `tokens`, and `lengths` or `attention_mask` where it has them."""
        url, suffix = self.entry.url, self.entry.url.rpartition(".")[2]
        if suffix == "bin":
            named = {"tokens": self.flat()}
        elif suffix == "safetensors":
            header = read_header(self.file.read, url, self.entry.size)
            named = {name: ArraySpec(spec.dtype, spec.shape, spec.start) for name, spec in header.tensors.items()}
        elif suffix == "npz":
            named = self.members()
        else:
            named = {"tokens": npy_spec(url, self.file.read(0, 1 << 16), 0)}
        name = next((name for name in TOKENS if name in named), None)
        if name is None:
            there = ", ".join(named) or "none"
            raise JobError(f"tasks.path={url} has no tensor {' or '.join(map(repr, TOKENS))}; it has {there}")
        arrays = {"tokens": named[name]} | {key: named[key] for key in (LENGTHS, MASK) if key in named}
        self.check(arrays)
        return arrays

    def flat(self) -> ArraySpec:
        if self.config.dtype is None or self.config.row_tokens is None:
            raise JobError(
                f"tasks.path={self.entry.url}: a .bin file does not tell what is in it; give tasks.dtype=uint16 (or "
                "another) and tasks.row_tokens=1024 (tokens of a sample)"
            )
        dtype = np.dtype(self.config.dtype).newbyteorder("<")
        if self.entry.size % dtype.itemsize:
            raise JobError(f"tasks.path={self.entry.url}: {self.entry.size} bytes are no whole number of {dtype}")
        return ArraySpec(dtype, (self.entry.size // dtype.itemsize,), 0)

    def members(self) -> dict[str, ArraySpec]:
        """Returns the arrays of an .npz file, which must not be compressed: rows are read where they lie."""
        url, specs = self.entry.url, {}
        try:
            archive = zipfile.ZipFile(RangedFile(self.file, self.entry.size))
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as error:
            raise unreadable(url, f"no .npz file: {first_line(error)}") from error
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED:
                raise JobError(f"tasks.path={url} is compressed; save it with numpy.savez, or as .npy")
            head = self.file.read(member.header_offset, 30)
            name_bytes, extra_bytes = struct.unpack("<HH", head[26:30]) if len(head) == 30 else (0, 0)
            start = member.header_offset + 30 + name_bytes + extra_bytes
            name = member.filename.removesuffix(".npy")
            if name in specs:
                raise unreadable(url, f"it has {name!r:.60} twice")
            specs[name] = spec = npy_spec(url, self.file.read(start, 1 << 16), start)
            if spec.stop > start + member.file_size:
                raise unreadable(url, f"{name!r:.60} is {spec}, but ends before")
        return specs

    def check(self, arrays: dict[str, ArraySpec]) -> None:
        """Raises JobError where an array is not of integers, or has another shape."""
        url, tokens, lengths, mask = self.entry.url, arrays["tokens"], arrays.get(LENGTHS), arrays.get(MASK)
        flat = len(tokens.shape) == 1 and self.config.row_tokens is not None and lengths is None and mask is None
        if tokens.dtype.kind not in "iu" or not (len(tokens.shape) == 2 or flat):
            fix = "" if len(tokens.shape) != 1 else ", or tasks.row_tokens=1024 to cut it into samples"
            raise JobError(f"tasks.path={url}: {TOKENS[0]} is {tokens}; whole numbers [n, S] are needed{fix}")
        if lengths is not None and (lengths.shape != tokens.shape[:1] or lengths.dtype.kind not in "iu"):
            raise JobError(f"tasks.path={url}: {LENGTHS} is {lengths}; whole numbers [{tokens.shape[0]}] are needed")
        if mask is not None and mask.shape != tokens.shape:
            raise JobError(f"tasks.path={url}: {MASK} is {mask}; the shape {list(tokens.shape)} is needed")
        if mask is not None and lengths is not None:
            raise JobError(f"tasks.path={url} has {LENGTHS} and {MASK}, which may differ; leave one of them out")
        if not tokens.row_bytes:  # of such rows a file of a few bytes can have any number
            raise JobError(f"tasks.path={url}: {TOKENS[0]} is {tokens}: its rows have no tokens; leave it out")
        for name, spec in arrays.items():
            if spec.stop > self.entry.size:
                raise unreadable(url, f"{name} is {spec}, but the file ends before; copy it again")


@dataclass(frozen=True)
class Rows:
    """Some rows of the arrays of a file."""

    tokens: np.ndarray
    lengths: np.ndarray | None
    mask: np.ndarray | None

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in (self.tokens, self.lengths, self.mask) if part is not None)


def npy_spec(url: str, head: bytes, start: int) -> ArraySpec:
    """Returns the array whose .npy file begins with `head`, at `start` of a file (numpy.lib.format)."""
    try:
        if head[:6] != NPY_MAGIC:
            raise ValueError("the magic string is missing")
        size_bytes = 2 if head[6] == 1 else 4
        length = int.from_bytes(head[8 : 8 + size_bytes], "little")
        text = head[8 + size_bytes : 8 + size_bytes + length]
        described: Any = ast.literal_eval(text.decode("latin1").strip())
        dtype, shape = np.dtype(described["descr"]), tuple(described["shape"])
        if not all(type(size) is int and size >= 0 for size in shape):
            raise ValueError(f"its shape is {shape!r:.60}")
        if described["fortran_order"] and len(shape) > 1:
            raise ValueError("it is in the order of Fortran; save numpy.ascontiguousarray of it")
        return ArraySpec(dtype, shape, start + 8 + size_bytes + length)
    except (ValueError, KeyError, TypeError, SyntaxError, IndexError, RecursionError, MemoryError) as error:
        raise JobError(
            f"tasks.path={url} cannot be read ({first_line(error)}); give a .npy or .safetensors file"
        ) from error
