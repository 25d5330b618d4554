"""Writes activations as the pickle files of the extraction document, and the metadata.json beside them.

A file has a number of activations of one layer; each is a sample to the document, wherever in a prompt it comes from.
"""

import pickle
import re
from collections.abc import Callable, Iterable

import numpy as np
from jaxtyping import Float, Float32

from pod_job.errors import JobError
from pod_job.formats.records import encode, now
from pod_job.interop.pickle_metadata import PickleEntry, PickleMetadata
from pod_job.run_folder.layout import layer_number
from pod_job.storage.checksums import checksum
from pod_job.storage.folder import Folder, NameTaken

METADATA = "metadata.json"
PICKLE = re.compile(r"[^/]+_batch_\d{6,}\.pkl")
"""Names that `file_name` gives."""

Item = dict[str, str | int | Float32[np.ndarray, " D"]]
"""One activation: `task_id`, `sample_idx`, `activation`, `timestamp`, as the document has them."""


class PickleWriter:
    """Collects the activations of each tap, and writes a file whenever `per_file` of a tap are there."""

    def __init__(
        self, out: Folder, per_file: int, report: Callable[[str], None] = lambda name: None, keep: bool = False
    ) -> None:
        """`report` is called with the name of each file once it is written; `keep`: files with other content stay."""
        self.out, self.per_file, self.report, self.keep = out, per_file, report, keep
        self.pending: dict[str, list[Item]] = {}
        self.entries: list[PickleEntry] = []

    def add(self, tap: str, items: Iterable[Item]) -> None:
        """Adds activations of a tap, and writes the files that are full."""
        pending = self.pending.setdefault(tap, [])
        for item in items:
            pending.append(item)
            if len(pending) == self.per_file:
                self._write(tap)

    def finish(self, model_name: str, layers: list[int], hidden_dim: int) -> PickleMetadata:
        """Writes the files that are not full and metadata.json, which it returns; more may be added afterwards."""
        for tap in self.pending:
            self._write(tap)
        taps = list(self.pending)
        described = PickleMetadata(
            model_name=model_name,
            layers_extracted=layers,
            hidden_dim=hidden_dim,
            total_samples=max((self.count(tap) for tap in taps), default=0),
            batches=sorted(self.entries, key=lambda entry: (entry.batch_id, taps.index(entry.layer))),
        )
        self.out.replace(METADATA, encode(described, indent=2))
        return described

    def count(self, tap: str) -> int:
        """Returns the activations in the files of a tap."""
        return sum(entry.n_samples for entry in self.entries if entry.layer == tap)

    def _write(self, tap: str) -> None:
        if not (items := self.pending[tap]):
            return
        number = 1 + sum(entry.layer == tap for entry in self.entries)
        name = file_name(tap, number)
        data = pickle.dumps({"layer": layer_number(tap), "activations": items}, protocol=4)
        if self.keep:
            create(self.out, name, data)
        else:
            self.out.replace(name, data)
        self.entries.append(PickleEntry(number, tap, name, len(items), checksum([data]).crc32c))
        items.clear()
        self.report(name)


def file_name(tap: str, number: int) -> str:
    return f"{tap}_batch_{number:06d}.pkl"


def create(out: Folder, name: str, data: bytes) -> None:
    """Writes a new file, or finds it there. JobError where other content has the name."""
    try:
        out.create(name, [data])
    except NameTaken:
        raise of_another_export(out, name) from None


class AnotherExport(JobError):
    """The folder to export into holds another export."""


def of_another_export(out: Folder, name: str) -> AnotherExport:
    return AnotherExport(f"OUT={out.url}: holds {name} of another export; delete that export or name another folder")


def remove_export(out: Folder) -> None:
    """Removes an export: its metadata.json first, so that what is left of it is never taken for a whole one."""
    out.remove(METADATA)
    for name in out.names(""):
        if PICKLE.fullmatch(name):
            out.remove(name)


def new_item(task_id: str, sample_idx: int, activation: Float[np.ndarray, " D"]) -> Item:
    """Returns an activation that is taken now; the document stores float32."""
    return {
        "task_id": task_id,
        "sample_idx": sample_idx,
        "activation": np.asarray(activation, np.float32),
        "timestamp": now(),
    }
