"""Compares the forecast with the times that the hosts of a run measured in their last attempt. No jax."""

import statistics
from collections.abc import Sequence
from typing import Any

from pod_job.config.load import to_json
from pod_job.config.schema import JobConfig
from pod_job.errors import JobError
from pod_job.preflight.forecast import Forecast
from pod_job.preflight.records import Comparison, Measured
from pod_job.run_folder.differences import differences
from pod_job.run_folder.identity import read_run
from pod_job.run_folder.slices import report_folder, slice_names
from pod_job.run_folder.start import read_start
from pod_job.run_folder.status import HostStatus, latest_attempt, read_status
from pod_job.run_folder.timeline import read_timelines
from pod_job.storage.folder import Folder

COMPARED = {
    "mode": (),
    "sharding": (),
    "mesh": ("data", "model"),
    "model": ("path", "dtype"),
    "extract": ("layers", "taps", "positions", "dtype", "seq_len", "rows_per_device", "prompts_per_row"),
    "generate": ("max_new_tokens",),
}
"""Fields of the configuration that the time of a step depends on."""


def measure(folder: Folder, config: JobConfig, forecasts: Sequence[Forecast]) -> Measured:
    """Returns the measured times of the run in `folder` against the forecasts of `config`.

    Raises:
        JobError: the folder holds no run, or one whose hosts have timed no step.
    """
    record = read_run(folder)
    started = read_start(folder) or record.config or {}
    statuses = last_statuses(folder, started.get("pod", {}).get("hosts", config.pod.hosts))
    timed = [status for status in statuses if status.step_s]
    if not timed:
        raise JobError(f"{folder.url}: no host has timed a step in its last attempt; a run of two steps or more has")
    recorded, configured = step_fields(started), step_fields(to_json(config))
    step, token = forecasts[0], None
    if len(forecasts) > 1:
        decode = forecasts[1]
        token = compare(decode.step_s / decode.tokens_in_turn, [status.token_s for status in timed])
    return Measured(
        run_dir=folder.url,
        attempt=timed[0].attempt,
        hosts=len(timed),
        device=device_kind(folder, timed[0].attempt),
        steps=max(status.steps for status in timed),
        step=compare(step.step_s, [status.step_s for status in timed]),
        token=token,
        differs=[f"{path}: {was} there, {now} here" for path, was, now in differences(recorded, configured)],
    )


def step_fields(values: dict[str, Any]) -> dict[str, Any]:
    """Returns the COMPARED fields of a configuration as JSON values; None for those it does not have."""
    return {
        name: {field: values.get(name, {}).get(field) for field in fields} if fields else values.get(name)
        for name, fields in COMPARED.items()
    }


def compare(predicted_s: float, measured_s: Sequence[float]) -> Comparison:
    """Returns the comparison with the median over hosts, as all hosts run every step together."""
    median_s = statistics.median(measured_s)
    ratio = median_s / predicted_s if predicted_s else 0.0
    return Comparison(predicted_s=predicted_s, measured_s=median_s, ratio=ratio)


def last_statuses(folder: Folder, hosts: int) -> list[HostStatus]:
    """Returns the statuses of the newest attempt, in each slice, of those hosts that have written one."""
    statuses = []
    for name in slice_names(folder) or [None]:
        reports = report_folder(folder, name)
        attempt = latest_attempt(reports, hosts)
        statuses += [read_status(reports, host, attempt) for host in range(hosts)] if attempt else []
    return [status for status in statuses if status is not None]


def device_kind(folder: Folder, attempt: str) -> str:
    """Returns the kind of device that the attempt computed on; empty where no host recorded it."""
    return next((timeline.device for timeline in read_timelines(folder) if timeline.attempt == attempt), "")
