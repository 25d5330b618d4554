"""Pods that a run has had, as `launch` records them in the run folder; reports count from them what a run has cost."""

import math

import msgspec

from pod_job.formats.records import read_file
from pod_job.run_folder.layout import PODS
from pod_job.storage.folder import Folder


class PodRecord(msgspec.Struct, frozen=True):
    """A pod of the run; Unix times. `ended` is None where nobody saw its end: it runs, or was taken away."""

    name: str
    zone: str
    accelerator_type: str
    capacity: str
    created: float
    ended: float | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.created) or (self.ended is not None and not math.isfinite(self.ended)):
            raise ValueError("a time is not finite")

    @property
    def key(self) -> str:
        return f"{int(self.created)}_{self.zone}_{self.name}"


def read_pods(folder: Folder) -> list[PodRecord]:
    """Returns every pod that was recorded, in the order of their creation.

    Raises:
        JobError: a file is not the record of a pod.
    """
    records: dict[str, PodRecord] = {}
    for name in sorted(folder.names(PODS)):  # of one pod, `created` comes before `ended`
        record = read_file(folder, name, PodRecord)
        records[record.key] = record
    return sorted(records.values(), key=lambda record: record.created)
