"""The pods that a run has had, as `launch` notes them in the run folder, and what was paid for them."""

import itertools
import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from pod_job.errors import JobError
from pod_job.preflight.prices import usd_per_hour
from pod_job.run_folder.rundir import PODS
from pod_job.storage import Folder


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


def hours(
    records: Sequence[PodRecord], alive: Collection[str], heard: float, now: float
) -> list[tuple[PodRecord, float]]:
    """Each record, in the order of their creation, with the hours it was paid for; `alive` has keys.

    A pod that is gone, and nobody saw it go, counts until the last word of a host, `heard`, or until the next pod.
    """
    paid = []
    for record, after in itertools.zip_longest(records, records[1:]):
        until = now if record.key in alive else min(heard, after.created) if after else heard
        paid.append((record, max(0.0, (record.ended or until) - record.created) / 3600))
    return paid


def spent(paid: Iterable[tuple[PodRecord, float]], price_per_chip_hour: float | None) -> float | None:
    """What the pods have cost so far, in dollars; None where a price is not known."""
    parts = [
        (usd_per_hour(record.accelerator_type, record.capacity, price_per_chip_hour), time_h) for record, time_h in paid
    ]
    if any(price is None for price, _ in parts):
        return None
    return sum((price * time_h for price, time_h in parts if price is not None), 0.0)
