"""Limits of a run: cloud.max_hours and cloud.max_usd, over all pods that it has had."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from pod_job.config.schema import JobConfig
from pod_job.errors import JobError
from pod_job.preflight.prices import hours, pod_usd_per_hour, spent
from pod_job.run_folder.pods import PodRecord

WORTH_S = 60.0  # of a pod: with less, nothing can be computed


@dataclass(frozen=True)
class Limit:
    """Limit that is reached first: in `left_s` seconds, with all slices of the run at work."""

    left_s: float
    reason: str

    @property
    def reached(self) -> bool:
        return self.left_s < WORTH_S


def nearest_limit(
    config: JobConfig, records: Sequence[PodRecord], alive: Collection[str], heard: float, now: float
) -> Limit | None:
    """Returns the limit that is reached first; None where none is set.

    Args:
        records: the pods that the run has had, in the order of creation.
        alive: keys of those that live.
        heard: Unix time of the newest status of any host.
        now: Unix time.
    """
    cloud = config.cloud
    paid = hours(records, alive, heard, now)
    share = 3600 / config.pod.slices  # of the seconds that are left: more slices than that never run
    limits = []
    if cloud.max_hours is not None:
        left_h = cloud.max_hours - sum(time_h for _, time_h in paid)
        limits.append(Limit(share * left_h, f"cloud.max_hours={cloud.max_hours:g} is reached"))
    if cloud.max_usd is not None:
        left_usd = cloud.max_usd - (spent(paid, cloud.price_per_chip_hour) or 0.0)
        limits.append(Limit(share * left_usd / price(config), f"cloud.max_usd={cloud.max_usd:g} is reached"))
    return min(limits, key=lambda limit: limit.left_s, default=None)


def price(config: JobConfig) -> float:
    """Returns the dollars per hour of the pod. JobError where cloud.max_usd is set and the price is unknown."""
    usd = pod_usd_per_hour(config)
    if not usd:
        raise JobError(
            f"cloud.max_usd={config.cloud.max_usd:g}: the price of {config.pod.accelerator_type} is unknown; "
            "set cloud.price_per_chip_hour"
        )
    return usd
