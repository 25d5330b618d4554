"""Checkpoints in safetensors files: their tensors by name, checked, told apart, and read by ranges. No jax.

Only headers are read here; of the weights, `TensorFiles.read_rows` reads what it is asked for.
"""

import hashlib
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from pod_job.checkpoints import mxfp4
from pod_job.checkpoints.tensor_names import (
    ADAPTER,
    DERIVED,
    EXPERTS_IN_ONE,
    MOST_EXPERTS,
    canonical,
    quantization,
)
from pod_job.errors import JobError, NoWeights
from pod_job.formats.json_text import parse_json
from pod_job.formats.safetensors import TensorSpec, read_header
from pod_job.models.weight_table import Part, Weight
from pod_job.storage.folder import Readable, check_name

T = TypeVar("T")
U = TypeVar("U")

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FINGERPRINT_BYTES = 4096
MOST_INDEX_BYTES = 256 << 20
"""Size of an index: some hundred bytes for each tensor."""
SOURCE_DTYPES = ("float32", "bfloat16", "float16", "float64")
READS_IN_FLIGHT = 16


@dataclass(frozen=True)
class Tensor:
    """Place of a tensor: its file, and where in the file it lies; of one in MXFP4, its blocks, and its `scales`."""

    file: str
    spec: TensorSpec
    scales: "Tensor | None" = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.spec.shape

    @property
    def dtype(self) -> np.dtype:
        return self.spec.dtype


@dataclass(frozen=True)
class TensorFiles:
    """Tensors by name in the safetensors files of a folder."""

    folder: Readable
    tensors: dict[str, Tensor]

    def read_place(self, place: tuple[str, int], start: int, stop: int, part: Part | None = None) -> np.ndarray:
        """Returns rows [start, stop) of a place as `Weight.places` has it; `part`: of a fused tensor that is meant."""
        name, first = place
        if part is None:
            return self.read_rows(name, first + start, first + stop)
        if not part.rows:
            return self.read_rows(name, first + start, first + stop)[:, part.index]
        index = first + part.index[start:stop]
        if int(index[-1]) - int(index[0]) < 2 * len(index):  # close together: one read and not one for each
            return self.read_rows(name, int(index[0]), int(index[-1]) + 1)[index - index[0]]
        runs = np.split(index, np.flatnonzero(np.diff(index) != 1) + 1)
        return np.concatenate([self.read_rows(name, int(run[0]), int(run[-1]) + 1) for run in runs])

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Returns rows [start, stop) of a tensor, of which all dimensions but the last count rows."""
        tensor = self.tensors[name]
        width = tensor.shape[-1] if tensor.shape else 1
        if tensor.scales is not None:
            packed = width // mxfp4.BLOCK_NUMBERS * mxfp4.BLOCK_BYTES, width // mxfp4.BLOCK_NUMBERS
            parts = (
                np.frombuffer(self._bytes(part, start * size, (stop - start) * size), np.uint8).reshape(-1, size)
                for part, size in zip((tensor, tensor.scales), packed, strict=True)
            )
            return mxfp4.dequantize(*parts)
        row_bytes = width * tensor.dtype.itemsize
        data = self._bytes(tensor, start * row_bytes, (stop - start) * row_bytes)
        return np.frombuffer(data, tensor.dtype).reshape(stop - start, width)

    def _bytes(self, tensor: Tensor, start: int, size: int) -> bytes:
        data = self.folder.read(tensor.file, tensor.spec.start + start, size)
        if len(data) != size:
            raise JobError(f"model.path={self.folder.url}: {tensor.file} was changed while it was read; start again")
        return data


def read_tensor_files(folder: Readable) -> TensorFiles:
    """Returns every tensor of the folder's safetensors files by name; headers are checked, no weight is read.

    Of a model with vision, the tensors of its text model, under the names that a text model has.

    Raises:
        JobError: no safetensors file, one named in the index missing, a truncated file, a tensor in two files.
    """
    tensors: dict[str, Tensor] = {}
    for file, found in map_ahead(lambda file: (file, read_file(folder, file)), weight_files(folder)):
        if doubled := sorted(found.keys() & tensors.keys()):
            raise JobError(f"model.path={folder.url}: tensor {doubled[0]} of {file} is in another file too")
        tensors |= found
    return TensorFiles(folder, of_text_model(tensors, f"model.path={folder.url}"))


def weight_files(folder: Readable) -> list[str]:
    """Returns the names of the safetensors files. NoWeights where there are none."""
    try:
        folder.read(WHOLE, 0, 1)
        return [WHOLE]
    except FileNotFoundError:
        pass
    try:
        index = parse_json(folder.read(INDEX, 0, MOST_INDEX_BYTES + 1), MOST_INDEX_BYTES)
        return sorted({check_name(file, folder.url) for file in index["weight_map"].values()})
    except FileNotFoundError:
        raise NoWeights(
            f"model.path={folder.url} has neither {WHOLE} nor {INDEX}, nor the converted.json that a conversion writes "
            "last; convert it to safetensors, or let `pod-job convert` finish"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise JobError(f"model.path={folder.url}: {INDEX} is not an index of tensors ({error})") from error


def read_file(folder: Readable, file: str) -> dict[str, Tensor]:
    """Returns the tensors of one file, which must be as long as its header says."""
    name = f"{folder.url}/{file}"
    try:
        header = read_header(lambda start, size: folder.read(file, start, size), name)
        end = max((spec.stop for spec in header.tensors.values()), default=header.data_start)
        beyond = len(folder.read(file, end - 1, 2))  # one byte, where the file ends as it should
    except FileNotFoundError:
        raise JobError(f"model.path={folder.url}: {file} is named in {INDEX} but missing; download it again") from None
    except OSError as error:
        raise JobError(f"{name}: cannot be read ({error.strerror})") from error
    if beyond != 1:
        problem = "truncated" if beyond == 0 else "it has bytes no tensor owns"
        raise JobError(f"{name}: not a usable safetensors file: {problem}: its header describes {end} bytes")
    return {tensor: Tensor(file, spec) for tensor, spec in header.tensors.items()}


def of_text_model(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Returns the tensors of the text model under the names of `tensor_names.canonical`."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        known_as = canonical(name)
        if known_as in renamed:
            raise JobError(f"{where}: tensor {name} is there under another name too, {known_as}; keep one of them")
        if known_as is not None:
            renamed[known_as] = tensor
    for name, blocks, scales in mxfp4.pairs(renamed):
        if spec := mxfp4.spec_of(renamed[blocks].spec, renamed[scales].spec):
            renamed[name] = Tensor(renamed.pop(blocks).file, spec, renamed.pop(scales))
    for name in [name for name in renamed if EXPERTS_IN_ONE.search(name) and f"{name}_bias" not in renamed]:
        if len(shape := renamed[name].shape) == 3 and 0 < shape[0] <= MOST_EXPERTS:
            renamed |= of_each_expert(name, renamed.pop(name))
    return renamed


def of_each_expert(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """Returns the matrices that lie one behind the other in the tensor of all experts of a layer, [expert, out, in].

    gate_up_proj has the outputs of gate, then those of up.
    """
    spec, module = tensor.spec, name.removesuffix(".weight").rpartition(".")
    experts, outputs, inputs = spec.shape
    projections = ("gate_proj", "up_proj") if module[2] == "gate_up_proj" else (module[2],)
    rows, row_bytes = outputs // len(projections), (spec.stop - spec.start) // max(1, experts * outputs)
    parts = {}
    for number, (expert, projection) in enumerate(itertools.product(range(experts), projections)):
        start = spec.start + number * rows * row_bytes
        part = TensorSpec(spec.dtype, (rows, inputs), start, start + rows * row_bytes)
        parts[f"{module[0]}.{expert}.{projection}.weight"] = Tensor(tensor.file, part)
    return parts


def checkpoint_names(weight: Weight) -> list[str]:
    """Returns the names of the tensors that a weight is made from, each once, in the order of its stack."""
    return list(dict.fromkeys(name for name, _ in weight.places))


def check_tensors(checkpoint: TensorFiles, table: Mapping[str, Weight]) -> None:
    """Raises JobError for a quantized checkpoint, and naming the first tensor that is missing, misshapen or unknown."""
    refuse_other_forms(checkpoint)
    known = set()
    for weight in table.values():
        for name in checkpoint_names(weight):
            known.add(name)
            if name not in checkpoint.tensors:
                raise JobError(f"checkpoint: tensor {name} {list(weight.checkpoint_shape)} is missing")
            tensor = checkpoint.tensors[name]
            if tensor.shape != weight.checkpoint_shape:
                raise JobError(
                    f"checkpoint: tensor {name} is {list(tensor.shape)}, but config.json says "
                    f"{list(weight.checkpoint_shape)}"
                )
            if str(tensor.dtype) not in SOURCE_DTYPES:
                raise JobError(
                    f"checkpoint: tensor {name} is {tensor.dtype}, as in a quantized model; "
                    f"use weights in {', '.join(SOURCE_DTYPES)}"
                )
    extra = sorted(
        name for name in checkpoint.tensors.keys() - known if name.startswith("model.") and not DERIVED.fullmatch(name)
    )
    if extra:
        raise JobError(f"checkpoint: tensor {extra[0]} is not part of this model ({len(extra)} such); wrong config?")


def refuse_other_forms(checkpoint: TensorFiles) -> None:
    """Raises JobError for weights that are quantized, or an adapter beside weights that it was not merged into."""
    if found := quantization(checkpoint.tensors):
        scheme, name = found
        raise JobError(
            f"model.path={checkpoint.folder.url}: tensor {name} says that the weights are quantized ({scheme}); "
            "use the model's bfloat16, float16 or float32 weights"
        )
    if adapter := next((name for name in sorted(checkpoint.tensors) if ADAPTER.search(name)), None):
        raise JobError(
            f"model.path={checkpoint.folder.url}: tensor {adapter} belongs to an adapter that is not merged; "
            "merge it (merge_and_unload of PEFT) and save the model"
        )


def unread_tensors(checkpoint: TensorFiles, table: Mapping[str, Weight]) -> list[str]:
    """Returns the names of tensors that no weight of the table is made from, such as heads of other tasks."""
    known = {name for weight in table.values() for name in checkpoint_names(weight)}
    return sorted(name for name in checkpoint.tensors.keys() - known if not DERIVED.fullmatch(name))


def tensors_fingerprint(checkpoint: TensorFiles) -> str:
    """Returns the SHA-256 over every tensor's name, dtype, shape and first 4 KiB, without reading the rest."""

    def start(item: tuple[str, Tensor]) -> bytes:
        spec = item[1].spec
        return checkpoint.folder.read(item[1].file, spec.start, min(FINGERPRINT_BYTES, spec.stop - spec.start))

    digest = hashlib.sha256()
    tensors = sorted(checkpoint.tensors.items())
    for (name, tensor), data in zip(tensors, map_ahead(start, tensors), strict=True):
        digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
        digest.update(data)
    return digest.hexdigest()


def map_ahead(read: Callable[[T], U], items: Iterable[T], in_flight: int = READS_IN_FLIGHT) -> Iterator[U]:
    """Yields `read(item)` in order, some in flight; results wait for the caller, so that few are in memory."""
    with ThreadPoolExecutor(in_flight) as pool:
        reading: deque[Future[U]] = deque()
        for item in items:
            if len(reading) == in_flight:
                yield reading.popleft().result()
            reading.append(pool.submit(read, item))
        while reading:
            yield reading.popleft().result()
