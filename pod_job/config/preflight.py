"""Rates that the preflight assumes: the fields `preflight.*` of the configuration."""

from dataclasses import dataclass

from pod_job.errors import JobError


@dataclass(kw_only=True)
class PreflightConfig:
    """Rates in GB/s; null: the assumptions in pod_job/preflight/tpu_facts.py."""

    host_gb_s: float | None = None  # rate from one chip to its host's memory
    bucket_gb_s: float | None = None  # rate from one host to the run folder

    def __post_init__(self) -> None:
        for name in ("host_gb_s", "bucket_gb_s"):
            rate = getattr(self, name)
            if rate is not None and not 0 < rate < float("inf"):
                raise JobError(f"preflight.{name}={rate} is not a rate; give GB/s above 0, or null")
