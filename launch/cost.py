"""What a run costs: a record of every pod it has had, kept in the run folder, and the prices of their chips."""

import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from launch.pods import Pod
from pod_job.cloud_config import Capacity
from pod_job.config import JobConfig
from pod_job.preflight.prices import usd_per_hour
from pod_job.run_folder.rundir import PODS, pod_file
from pod_job.storage import Folder, NameTaken


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


def record_of(pod: Pod, capacity: Capacity) -> PodRecord:
    return PodRecord(pod.name, pod.zone, pod.accelerator_type, capacity.value, pod.created)


def note_start(folder: Folder, record: PodRecord) -> None:
    """Keeps the record of a pod that has come; noted already is fine."""
    _create(folder, pod_file(record.key, "created"), record)


def note_end(folder: Folder, record: PodRecord, ended: float) -> None:
    """Keeps when a pod was deleted; the first that says so counts."""
    if record.created:
        _create(folder, pod_file(record.key, "ended"), replace(record, ended=ended))


def all_records(folder: Folder, living: Iterable[Pod], config: JobConfig) -> list[PodRecord]:
    """Every pod the run has had, in the order of their creation; one that lives counts noted or not."""
    records = [record_of(pod, config.cloud.capacity) for pod in living if pod.created]
    # Of one pod, `created` comes before `ended`.
    records += [PodRecord(**json.loads(folder.read(name))) for name in sorted(folder.names(PODS))]
    return sorted({record.key: record for record in records}.values(), key=lambda record: record.created)


def hours(
    records: Sequence[PodRecord], living: Sequence[Pod], heard: float, now: float
) -> list[tuple[PodRecord, float]]:
    """Each record, in the order of their creation, with the hours it was paid for.

    A pod that is gone, and nobody saw it go, counts until the last word of a host, `heard`, or until the next pod.
    """
    alive = {(pod.zone, pod.name, pod.created) for pod in living}
    paid = []
    for record, after in itertools.zip_longest(records, records[1:]):
        lives = (record.zone, record.name, record.created) in alive
        until = now if lives else min(heard, after.created) if after else heard
        paid.append((record, max(0.0, (record.ended or until) - record.created) / 3600))
    return paid


def spent(paid: Iterable[tuple[PodRecord, float]], config: JobConfig) -> float | None:
    """What the pods have cost so far; None where a price is not known."""
    own = config.cloud.price_per_chip_hour
    parts = [(usd_per_hour(record.accelerator_type, record.capacity, own), time_h) for record, time_h in paid]
    if any(price is None for price, _ in parts):
        return None
    return sum(price * time_h for price, time_h in parts if price is not None)


def _create(folder: Folder, name: str, record: PodRecord) -> None:
    try:
        folder.create(name, [json.dumps(vars(record)).encode()])
    except NameTaken:
        return
