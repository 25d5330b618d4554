"""What a slice costs an hour."""

from pod_job.cloud_config import Capacity
from pod_job.errors import JobError
from pod_job.preflight.tpu_facts import read_accelerator_type


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
