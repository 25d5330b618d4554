"""Cost of slices: dollars per hour, hours that pods were paid for, dollars spent."""

from collections.abc import Collection, Iterable, Sequence

from pod_job.config.cloud import Capacity
from pod_job.errors import JobError
from pod_job.preflight.tpu_facts import read_accelerator_type
from pod_job.run_folder.pods import PodRecord


def usd_per_hour(accelerator_type: str, capacity: str, own: float | None) -> float | None:
    """Returns the dollars per hour of the whole slice; None for an unknown accelerator type or price.

    Args:
        own: the user's price of a chip-hour; where None, the list price or, for spot capacity, the usual spot price.
    """
    try:
        sold = read_accelerator_type(accelerator_type)
    except JobError:
        return None
    listed = sold.chip.spot_usd_hour if capacity == Capacity.spot.value else sold.chip.list_usd_hour
    price = listed if own is None else own
    return None if price is None else sold.chips / sold.chip.devices * price


def hours(
    records: Sequence[PodRecord], alive: Collection[str], heard: float, now: float
) -> list[tuple[PodRecord, float]]:
    """Returns the records, in the order of creation, with the hours that each pod was paid for.

    A pod that ended without a record of its end counts until `heard` or until the next pod of its name was created.

    Args:
        alive: keys of the pods that exist now.
        heard: Unix time of the newest status of any host.
        now: Unix time.
    """
    paid = []
    for number, record in enumerate(records):
        after = next((later for later in records[number + 1 :] if later.name == record.name), None)
        until = now if record.key in alive else min(heard, after.created) if after else heard
        paid.append((record, max(0.0, (record.ended or until) - record.created) / 3600))
    return paid


def spent(paid: Iterable[tuple[PodRecord, float]], price_per_chip_hour: float | None) -> float | None:
    """Returns the dollars that the pods have cost so far; None where a price is unknown."""
    parts = [
        (usd_per_hour(record.accelerator_type, record.capacity, price_per_chip_hour), time_h) for record, time_h in paid
    ]
    if any(price is None for price, _ in parts):
        return None
    return sum((price * time_h for price, time_h in parts if price is not None), 0.0)
