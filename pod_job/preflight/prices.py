"""Cost of slices: dollars per hour, hours that pods were paid for, dollars spent."""

from collections.abc import Collection, Iterable, Sequence

from pod_job.config.cloud import Capacity
from pod_job.config.schema import JobConfig
from pod_job.errors import JobError
from pod_job.preflight.region_prices import USD_HOUR
from pod_job.preflight.tpu_facts import Chip, read_accelerator_type
from pod_job.run_folder.pods import PodRecord


def chip_prices(chip: Chip, zone: str) -> tuple[float | None, float | None]:
    """Returns the list price of a chip-hour in the zone's region, and that of spot; None where it is not known.

    Without a zone, or for one of a region without known prices: those of the region that PRICES_FROM names.
    """
    region = zone.rpartition("-")[0]
    return USD_HOUR.get(chip.name, {}).get(region, (chip.list_usd_hour, chip.spot_usd_hour))


def usd_per_hour(accelerator_type: str, capacity: str, own: float | None, zone: str = "") -> float | None:
    """Returns the dollars per hour of the whole slice; None for an unknown accelerator type or price.

    Args:
        own: the user's price of a chip-hour; where None, the list price or, for spot capacity, the usual spot price,
            of the zone's region.
    """
    try:
        sold = read_accelerator_type(accelerator_type)
    except JobError:
        return None
    list_price, spot_price = chip_prices(sold.chip, zone)
    price = (spot_price if capacity == Capacity.spot.value else list_price) if own is None else own
    return None if price is None else sold.chips / sold.chip.devices * price


def pod_usd_per_hour(config: JobConfig, zone: str | None = None, capacity: Capacity | None = None) -> float | None:
    """Returns the dollars per hour of the configured pod in a zone; without one, in the dearest of cloud.zones.

    Args:
        capacity: None: that of the configuration.
    """
    cloud, name = config.cloud, config.pod.accelerator_type or ""
    kind = (capacity or cloud.capacity).value
    zones = (cloud.zones or [""]) if zone is None else [zone]
    prices = [usd_per_hour(name, kind, cloud.price_per_chip_hour, each) for each in zones]
    return max((price for price in prices if price is not None), default=None)


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
        (usd_per_hour(record.accelerator_type, record.capacity, price_per_chip_hour, record.zone), time_h)
        for record, time_h in paid
    ]
    if any(price is None for price, _ in parts):
        return None
    return sum((price * time_h for price, time_h in parts if price is not None), 0.0)
