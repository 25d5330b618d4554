"""Checkpoints of training in the run folder: which there are, and what they record.

A checkpoint has a part of every host. A part has the pieces of arrays that lie on the host's devices, each piece once,
in the layout of orbax (zarr3 in OCDBT), and a record of where they belong, which is written last. A checkpoint counts
when the records of all hosts are there. `checkpoint_writer` writes parts, `checkpoint_restore` reads them.
"""

import re
from dataclasses import dataclass
from typing import Any, Literal

from pod_job.formats.checksummed_json import KEY, read_checksummed
from pod_job.formats.records import Count, Record, decode, read_bounded, read_file
from pod_job.run_folder.layout import CHECKPOINTS
from pod_job.run_folder.train_identity import TrainIdentity
from pod_job.storage.folder import Folder

KEPT = 2
"""Checkpoints that stay: the newest may be the one that a fault came with."""
CHECKSUM_BYTES = 32
"""Bytes at the end of a record that its checksum is in."""
RECORD = re.compile(re.escape(CHECKPOINTS) + r"step_(\d{9})/host_(\d{2,})\.json")


class Piece(Record, frozen=True):
    """A piece of an array of the state: its first index in each dimension, its shape, and its name in the part."""

    leaf: str
    start: list[Count]
    shape: list[Count]
    name: str


class PartRecord(Record, frozen=True, kw_only=True):
    """training/checkpoints/step_*/host_*.json; `files` has checksums of what is below `path`."""

    format: Literal[1]
    step: Count
    host: Count
    hosts: Count
    seconds: float
    train: TrainIdentity
    pieces: list[Piece]
    files: dict[str, str]

    @property
    def path(self) -> str:
        """Name of the folder of its arrays."""
        return part_folder(self.step, self.host)


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: the parts of all hosts."""

    step: int
    parts: tuple[PartRecord, ...]

    @property
    def seconds(self) -> float:
        """Seconds of training up to it, over all starts."""
        return self.parts[0].seconds


def step_folder(step: int) -> str:
    return f"{CHECKPOINTS}step_{step:09d}/"


def part_folder(step: int, host: int) -> str:
    return f"{step_folder(step)}host_{host:02d}"


def piece_spec(base: str, name: str) -> dict[str, Any]:
    """Returns where the array of a piece is, for tensorstore."""
    return {"driver": "zarr3", "kvstore": {"driver": "ocdbt", "base": base, "path": f"{name}/"}}


def read_part(folder: Folder, name: str) -> PartRecord:
    """Returns the record of a part. JobError where it is damaged; one of an earlier version has no checksum."""
    data, where = read_bounded(folder, name), f"{folder.url}/{name}"
    if f'"{KEY}":'.encode() not in data[-CHECKSUM_BYTES:]:
        return read_file(folder, name, PartRecord)
    advice = f"; remove {where} to go on from another checkpoint"
    return decode(read_checksummed(data, where, advice), PartRecord, where)


def latest_checkpoint(folder: Folder) -> Checkpoint | None:
    """Returns the newest checkpoint of which all parts are there; None where there is none."""
    complete = complete_checkpoints(folder)
    return complete[-1] if complete else None


def complete_checkpoints(folder: Folder) -> list[Checkpoint]:
    """Returns the checkpoints of which all parts are there, the oldest first. JobError where a record is damaged."""
    by_step: dict[int, list[PartRecord]] = {}
    for name in folder.names(CHECKPOINTS):
        if match := RECORD.fullmatch(name):
            by_step.setdefault(int(match[1]), []).append(read_part(folder, name))
    complete = []
    for step, parts in sorted(by_step.items()):
        hosts = parts[0].hosts
        here = [part for part in parts if part.hosts == hosts]
        if len(here) == hosts:
            complete.append(Checkpoint(step, tuple(here)))
    return complete


def remove_old(folder: Folder) -> None:
    """Removes all but the newest KEPT checkpoints, the records of each before its arrays."""
    complete = complete_checkpoints(folder)
    if len(complete) < KEPT:
        return
    oldest_kept = complete[-KEPT].step
    for name in sorted(folder.names(CHECKPOINTS), key=lambda name: RECORD.fullmatch(name) is None):
        step = re.match(re.escape(CHECKPOINTS) + r"step_(\d{9})/", name)
        if step and int(step[1]) < oldest_kept:
            folder.remove(name)


def remove_after(folder: Folder, step: int) -> None:
    """Removes the records of checkpoints after a step, of which hosts that were killed have left parts.

    Otherwise one could count as complete by the new part of a host and what another had left, which it then replaces.
    """
    for name in folder.names(CHECKPOINTS):
        if (match := RECORD.fullmatch(name)) and int(match[1]) > step:
            folder.remove(name)


def remove_below(folder: Folder, prefix: str) -> None:
    """Removes everything whose name begins with the prefix."""
    for name in folder.names(prefix):
        folder.remove(name)
