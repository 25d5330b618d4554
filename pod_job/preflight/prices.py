"""What a slice costs an hour."""

import itertools
from collections.abc import Collection, Iterable, Sequence

from pod_job.config.cloud import Capacity
from pod_job.errors import JobError
from pod_job.preflight.tpu_facts import read_accelerator_type
from pod_job.run_folder.pods import PodRecord


def usd_per_hour(accelerator_type: str, capacity: str, own: float | None) -> float | None:
    """Of the whole slice: at the user's `own` price of a chip, else at the list price or, for spot, about what
    spot costs; None for a type whose chips are not known.
    """
    try:
        found = read_accelerator_type(accelerator_type)
    except JobError:
        return None
    listed = found.chip.spot_usd_hour if capacity == Capacity.spot.value else found.chip.list_usd_hour
    return found.chips * (listed if own is None else own)


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
