"""The pods that a run has had, as `launch` notes them in the run folder, and what was paid for them."""

import json
from dataclasses import dataclass

from pod_job.errors import JobError
from pod_job.run_folder.layout import PODS
from pod_job.storage.folder import Folder


@dataclass(frozen=True)
class PodRecord:
    """A pod of the run; Unix times. `ended` is None where nobody saw its end: it lives, or was taken away."""

    name: str
    zone: str
    accelerator_type: str
    capacity: str
    created: float
    ended: float | None = None

    @property
    def key(self) -> str:
        return f"{int(self.created)}_{self.zone}_{self.name}"


def read_pods(folder: Folder) -> list[PodRecord]:
    """Every pod that was noted, in the order of their creation. JobError where a file is not the record of one."""
    found = {}
    for name in sorted(folder.names(PODS)):  # of one pod, `created` comes before `ended`
        try:
            record = PodRecord(**json.loads(folder.read(name)))
            times = record.created, record.created if record.ended is None else record.ended
            found[record.key] = record
        except (ValueError, TypeError) as error:
            raise JobError(f"{folder.url}/{name}: not the record of a pod ({error})") from error
        if not all(isinstance(time, int | float) for time in times):
            raise JobError(f"{folder.url}/{name}: not the record of a pod (its times are not numbers)")
    return sorted(found.values(), key=lambda record: record.created)
