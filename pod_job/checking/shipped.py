"""The reference that comes with a run: made by Hugging Face's model where the run was started, read by host 0.

T tokens of all sequences, one behind the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
from jaxtyping import Float

from pod_job import __version__
from pod_job.errors import JobError
from pod_job.formats.records import encode, now
from pod_job.formats.safetensors import read_header, view_tensor, write_parts
from pod_job.planning.inputs import Inputs
from pod_job.run_folder import layout
from pod_job.run_folder.reference import ReferenceRecord, read_reference_record
from pod_job.storage.checksums import Stored, checksum
from pod_job.units import GB

MOST_BYTES = 1 << 30
"""Larger ones are not shipped: host 0 holds one in memory."""


@dataclass(frozen=True)
class Shipped:
    """Taps and columns in float32, and the errors of the same rows in the run's dtype."""

    truths: dict[str, Float[np.ndarray, "T _"]]
    errors: dict[str, Float[np.ndarray, "T"]]


def write_shipped(inputs: Inputs, sequences: Sequence[np.ndarray], shipped: Shipped) -> None:
    """Stores the reference in the run folder, its record last."""
    tensors = {f"truth/{tap}": vectors for tap, vectors in shipped.truths.items()}
    tensors |= {f"error/{tap}": errors.astype(np.float32) for tap, errors in shipped.errors.items()}
    content = b"".join(write_parts(tensors))
    inputs.folder.replace(layout.REFERENCE_VECTORS, content)
    stored = checksum([content])
    record = ReferenceRecord(
        format=1,
        model=inputs.identity.model,
        taps=list(inputs.compared_widths),
        token_ids=[sequence.tolist() for sequence in sequences],
        versions={package: version(package) for package in ("torch", "transformers")} | {"pod_job": __version__},
        size=stored.size,
        crc32c=stored.crc32c,
        made=now(),
    )
    inputs.folder.replace(layout.REFERENCE, encode(record))


def why_too_large(inputs: Inputs, sequences: Sequence[np.ndarray]) -> str | None:
    """Returns why vectors of these tokens are not shipped; None where they are."""
    tokens = sum(map(len, sequences))
    size = 4 * tokens * sum(width + 1 for width in inputs.compared_widths.values())
    return f"{size / GB:.1f} GB are too many; take fewer taps" if size > MOST_BYTES else None


def read_shipped(inputs: Inputs, sequences: Sequence[np.ndarray]) -> Shipped | str:
    """Returns the reference that came with the run; the reason, for people, where there is none that fits."""
    try:
        record = read_reference_record(inputs.folder)
        reason = "there is none" if record is None else misfit(record, inputs, sequences)
        if record is None or reason:
            return reason
        return chosen_rows(_read_vectors(inputs, record), record.token_ids, sequences)
    except JobError as error:
        return str(error)
    except FileNotFoundError:
        return f"{layout.REFERENCE_VECTORS} is missing"


def misfit(record: ReferenceRecord, inputs: Inputs, sequences: Sequence[np.ndarray]) -> str:
    """Returns in what the reference is one of another run; "" where it fits."""
    if record.model != inputs.identity.model:
        return "it was made by another model, other weights or for another model.dtype"
    if not all(sequence.tolist() in record.token_ids for sequence in sequences):
        return "it was made for other token ids"
    if record.taps != list(inputs.compared_widths):
        return "it was made for other taps or columns"
    return "" if record.size <= MOST_BYTES else f"its {record.size} bytes are too many"


def chosen_rows(shipped: Shipped, token_ids: list[list[int]], sequences: Sequence[np.ndarray]) -> Shipped:
    """Returns the rows of these sequences, one behind the other: a step may hold fewer, in another order."""
    ends = np.cumsum([0, *map(len, token_ids)])
    numbers = [token_ids.index(sequence.tolist()) for sequence in sequences]
    rows = np.concatenate([np.arange(ends[number], ends[number + 1]) for number in numbers])
    truths = {tap: vectors[rows] for tap, vectors in shipped.truths.items()}
    return Shipped(truths, {tap: errors[rows] for tap, errors in shipped.errors.items()})


def _read_vectors(inputs: Inputs, record: ReferenceRecord) -> Shipped:
    name = f"{inputs.folder.url}/{layout.REFERENCE_VECTORS}"
    content = inputs.folder.read(layout.REFERENCE_VECTORS, 0, record.size + 1)
    if checksum([content]) != Stored(record.size, record.crc32c):
        raise JobError(f"{name}: is not as {layout.REFERENCE} says")
    header = read_header(lambda start, size: content[start : start + size], name, len(content))
    raw = np.frombuffer(content, np.uint8)
    tokens = sum(map(len, record.token_ids))
    arrays = {tensor: view_tensor(raw, spec) for tensor, spec in header.tensors.items()}
    truths = {tap: arrays.get(f"truth/{tap}") for tap in record.taps}
    errors = {tap: arrays.get(f"error/{tap}") for tap in record.taps}
    for tap, width in inputs.compared_widths.items():
        for array, shape in ((truths[tap], (tokens, width)), (errors[tap], (tokens,))):
            if array is None or array.shape != shape or array.dtype != np.float32:
                raise JobError(f"{name}: has no float32 vectors {list(shape)} of {tap}")
    return Shipped(truths, errors)  # type: ignore[arg-type]
