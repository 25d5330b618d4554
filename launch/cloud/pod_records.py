"""Records of the pods of a run, in its folder: when each was created, and when it was deleted."""

from collections.abc import Iterable

import msgspec

from launch.cloud.pods import Pod
from pod_job.config.cloud import Capacity
from pod_job.config.schema import JobConfig
from pod_job.formats.records import encode
from pod_job.run_folder.layout import pod_file
from pod_job.run_folder.pods import PodRecord, read_pods
from pod_job.storage.folder import Folder, NameTaken


def record_of(pod: Pod, capacity: Capacity) -> PodRecord:
    return PodRecord(pod.name, pod.zone, pod.accelerator_type, capacity.value, pod.created)


def note_start(folder: Folder, record: PodRecord) -> None:
    """Records a pod that was created; one that is recorded already is left as it is."""
    _create(folder, pod_file(record.key, "created"), record)


def note_end(folder: Folder, record: PodRecord, ended: float) -> None:
    """Records when a pod was deleted; the first record counts."""
    if record.created:
        _create(folder, pod_file(record.key, "ended"), msgspec.structs.replace(record, ended=ended))


def all_records(folder: Folder, living: Iterable[Pod], config: JobConfig) -> list[PodRecord]:
    """Returns every pod the run has had, in the order of creation; a living one counts recorded or not."""
    records = [record_of(pod, config.cloud.capacity) for pod in living if pod.created] + read_pods(folder)
    return sorted({record.key: record for record in records}.values(), key=lambda record: record.created)


def _create(folder: Folder, name: str, record: PodRecord) -> None:
    try:
        folder.create(name, [encode(record)])
    except NameTaken:
        return
