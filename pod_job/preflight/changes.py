"""Changes to a job that does not fit on its chips, or whose results leave more slowly than they are computed.

Every change is compiled before it is proposed.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from itertools import islice

from msgspec.structs import asdict

from pod_job.config.schema import JobConfig, Sharding
from pod_job.formats.safetensors import DTYPE_OF
from pod_job.models.arch import Arch
from pod_job.models.taps import Tap
from pod_job.planning.inputs import needed_weights
from pod_job.preflight.forecast import Forecast
from pod_job.preflight.planned_job import PlannedJob
from pod_job.preflight.records import Change

MOST_CHANGES = 2
"""Proposals that are compiled."""
SLOW_EXITS = ("host", "bucket")
"""Bottlenecks that fewer taps widen."""


def checked_changes(
    job: PlannedJob, forecast: Forecast, forecasts: Callable[[PlannedJob], list[Forecast]]
) -> list[Change]:
    """Returns the first proposals with the forecast of each, up to the first one that solves the problem.

    Args:
        forecast: of the job's first program that does not fit, or else of its first program.
        forecasts: compiles a job's programs.
    """
    checked = []
    for overrides, changed in islice(proposals(job, forecast), MOST_CHANGES):
        outcome = deciding_forecast(forecasts(changed))
        checked.append(Change(change=overrides, **asdict(outcome)))
        if outcome.fits and outcome.bottleneck not in SLOW_EXITS:
            break
    return checked


def deciding_forecast(forecasts: list[Forecast]) -> Forecast:
    """Returns the first forecast that does not fit, or else the first one."""
    return next((forecast for forecast in forecasts if not forecast.fits), forecasts[0])


def proposals(job: PlannedJob, forecast: Forecast) -> Iterator[tuple[str, PlannedJob]]:
    """Yields overrides that may help and the job that they make, the likeliest first."""
    if not forecast.fits:
        for overrides, config in smaller_configs(job.config, job.arch, forecast):
            yield overrides, dataclasses.replace(job, config=config)
    elif forecast.bottleneck in SLOW_EXITS:
        taps, computing_s = job.taps, max(forecast.seconds["compute"], forecast.seconds["hbm"])
        count = min(len(taps) - 1, max(1, math.floor(len(taps) * computing_s / forecast.step_s)))
        while count >= 1:
            # The deepest stays, and others at even distances.
            chosen = tuple(taps[round((i + 1) * len(taps) / count) - 1] for i in range(count))
            yield taps_override(chosen), dataclasses.replace(job, taps=chosen)
            count //= 2


def smaller_configs(config: JobConfig, arch: Arch, forecast: Forecast) -> Iterator[tuple[str, JobConfig]]:
    """Yields split weights where that is enough, else fewer rows: as many as fit if all but weights grows with them."""
    need, available, rows = forecast.hbm["total"], forecast.hbm_available, config.extract.rows_per_device
    model_bytes = sum(math.prod(weight.shape) for weight in needed_weights(config, arch).values())
    model_bytes *= DTYPE_OF[config.model.dtype.value].itemsize
    parts = config.mesh.model
    weights = model_bytes if config.sharding is Sharding.replicated else model_bytes // parts
    split = dataclasses.replace(config, sharding=Sharding.fsdp)
    splits = config.sharding is Sharding.replicated and parts > 1 and arch.hidden % parts == 0
    if splits and need and need - weights + weights // parts <= available:
        yield "sharding=fsdp", split
    if weights < available:
        for fewer in fewer_rows(rows, need, available, weights):
            yield f"extract.rows_per_device={fewer}", with_rows(config, fewer)
    elif splits:
        yield "sharding=fsdp", split
        for fewer in fewer_rows(rows, need, available, weights // parts):
            yield f"sharding=fsdp extract.rows_per_device={fewer}", with_rows(split, fewer)


def fewer_rows(rows: int, need: int, available: int, weights: int) -> Iterator[int]:
    """Yields rows per device that may fit, the most first; by halves where the compiler reports no `need` in bytes."""
    share = (available - weights) / (need - weights) if need > available else 0.5
    count = min(rows // 2, max(1, math.floor(rows * share)))
    while count >= 1:
        yield count
        count //= 2


def with_rows(config: JobConfig, rows: int) -> JobConfig:
    return dataclasses.replace(config, extract=dataclasses.replace(config.extract, rows_per_device=rows))


def taps_override(taps: tuple[Tap, ...]) -> str:
    """Returns the override that asks for these taps alone; a description where `extract.layers` cannot."""
    if all(tap.site == "resid_post" for tap in taps):
        return f"extract.layers=[{','.join(str(tap.layer) for tap in taps)}]"
    return f"fewer taps: {', '.join(tap.name for tap in taps)}"
