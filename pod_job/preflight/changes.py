"""What to change where a job does not fit on its chips, or its results leave more slowly than they are computed.

Every change is compiled before it is proposed.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

from pod_job.config.schema import JobConfig, Sharding
from pod_job.formats.safetensors import DTYPE_OF
from pod_job.models.arch import Arch
from pod_job.models.taps import Tap
from pod_job.models.weight_table import weight_table
from pod_job.preflight.forecast import Forecast

MOST_CHANGES = 2  # compiled and checked when something must change

Change = tuple[str, JobConfig, tuple[Tap, ...]]  # overrides, and what they make of the job


def checked_changes(
    config: JobConfig,
    arch: Arch,
    taps: tuple[Tap, ...],
    found: Forecast,
    forecasts: Callable[[JobConfig, tuple[Tap, ...]], list[Forecast]],
) -> list[dict[str, Any]]:
    """The first changes proposed, with what `forecasts` says of each, up to one that mends it."""
    checked = []
    for change, changed, fewer_taps in list(proposals(config, arch, taps, found))[:MOST_CHANGES]:
        outcome = forecasts(changed, fewer_taps)
        first = next((each for each in outcome if not each.fits), outcome[0])
        checked.append({"change": change} | first.report())
        if first.fits and first.bottleneck not in ("host", "bucket"):
            break
    return checked


def proposals(config: JobConfig, arch: Arch, taps: tuple[Tap, ...], found: Forecast) -> Iterator[Change]:
    """What may help, the likeliest first."""
    if not found.fits:
        yield from ((change, changed, taps) for change, changed in to_fit(config, arch, found))
    elif found.bottleneck in ("host", "bucket"):
        kept = len(taps) * max(found.seconds["compute"], found.seconds["hbm"]) / found.step_s
        count = min(len(taps) - 1, max(1, math.floor(kept)))
        while count >= 1:
            # The deepest stays, and others at even distances.
            chosen = tuple(taps[round((i + 1) * len(taps) / count) - 1] for i in range(count))
            yield named(chosen), config, chosen
            count //= 2


def to_fit(config: JobConfig, arch: Arch, found: Forecast) -> Iterator[tuple[str, JobConfig]]:
    """Split weights where that is enough, else fewer rows: as many as fit if what is not weights grows with them."""
    need, available, rows = found.hbm["total"], found.hbm_available, config.extract.rows_per_device
    whole = sum(math.prod(weight.shape) for weight in weight_table(arch).values())
    whole *= DTYPE_OF[config.model.dtype.value].itemsize
    weights = whole if config.sharding is Sharding.replicated else whole // config.mesh.model
    parts = config.mesh.model
    split = dataclasses.replace(config, sharding=Sharding.fsdp)
    splits = config.sharding is Sharding.replicated and parts > 1 and arch.hidden % parts == 0
    if splits and need and need - weights + weights // parts <= available:
        yield "sharding=fsdp", split
    if weights < available:
        yield from (
            (f"extract.rows_per_device={fewer}", with_rows(config, fewer))
            for fewer in fewer_rows(rows, need, available, weights)
        )
    elif splits:
        yield "sharding=fsdp", split
        for fewer in fewer_rows(rows, need, available, weights // parts):
            yield f"sharding=fsdp extract.rows_per_device={fewer}", with_rows(split, fewer)


def fewer_rows(rows: int, need: int, available: int, weights: int) -> Iterator[int]:
    """Rows per device that may fit, the most first; where the compiler did not say what it needs, by halves."""
    share = (available - weights) / (need - weights) if need > available else 0.5
    count = min(rows // 2, max(1, math.floor(rows * share)))
    while count >= 1:
        yield count
        count //= 2


def with_rows(config: JobConfig, rows: int) -> JobConfig:
    return dataclasses.replace(config, extract=dataclasses.replace(config.extract, rows_per_device=rows))


def named(taps: tuple[Tap, ...]) -> str:
    """The override that asks for these taps alone, where layers are all it takes."""
    if all(tap.site == "resid_post" for tap in taps):
        return f"extract.layers=[{','.join(str(tap.layer) for tap in taps)}]"
    return f"fewer taps: {', '.join(tap.name for tap in taps)}"
