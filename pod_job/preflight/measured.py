"""What was predicted against what a run took: by how much the prediction was off. No jax.

In: the forecasts and a run folder. Out: the times that its hosts measured in their last attempt, and the ratios.
"""

import statistics
from collections.abc import Sequence
from typing import Any

from pod_job.config.load import to_json
from pod_job.config.schema import JobConfig
from pod_job.errors import JobError
from pod_job.host.status import HostStatus, latest_attempt, read_status
from pod_job.host.timeline import read_timelines
from pod_job.preflight.forecast import Forecast
from pod_job.run_folder.identity import differences, read_run
from pod_job.storage.folder import Folder

# What the time of a step depends on, among the fields of the configuration.
COMPARED = {
    "mode": (),
    "sharding": (),
    "mesh": ("data", "model"),
    "model": ("path", "dtype"),
    "extract": ("layers", "taps", "positions", "dtype", "seq_len", "rows_per_device", "prompts_per_row"),
    "generate": ("max_new_tokens",),
}


def measure(folder: Folder, config: JobConfig, found: Sequence[Forecast]) -> dict[str, Any]:
    """The comparison as JSON values. `differs` names the fields in which the run was started otherwise.

    Raises:
        JobError: the folder holds no run, or one whose hosts have timed no step.
    """
    record = read_run(folder)
    hosts = statuses(folder, (record["config"] or {}).get("pod", {}).get("hosts", config.pod.hosts))
    timed = [status for status in hosts if status.step_s]
    if not timed:
        raise JobError(f"{folder.url}: no host has timed a step in its last attempt; a run of two steps or more has")
    there, here = step_fields(record["config"] or {}), step_fields(to_json(config))
    differs = [f"{path}: {was} there, {now} here" for path, was, now in differences(there, here)]
    step = compared(found[0].step_s, [status.step_s for status in timed])
    token = None
    if len(found) > 1:
        predicted = found[1].step_s / found[1].tokens_in_turn
        token = compared(predicted, [status.token_s for status in timed])
    return {
        "run_dir": folder.url,
        "attempt": timed[0].attempt,
        "hosts": len(timed),
        "device": device(folder, timed[0].attempt),
        "steps": max(status.steps for status in timed),
        "step": step,
        "token": token,
        "differs": differs,
    }


def step_fields(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: {field: values.get(name, {}).get(field) for field in fields} if fields else values.get(name)
        for name, fields in COMPARED.items()
    }


def compared(predicted_s: float, measured_s: Sequence[float]) -> dict[str, float]:
    """`ratio`: measured over predicted; above 1 the pod was slower. All hosts run each step together: their median."""
    seconds = statistics.median(measured_s)
    return {"predicted_s": predicted_s, "measured_s": seconds, "ratio": seconds / predicted_s if predicted_s else 0.0}


def statuses(folder: Folder, hosts: int) -> list[HostStatus]:
    """What the hosts said last, in the newest attempt."""
    attempt = latest_attempt(folder, hosts)
    found = [read_status(folder, host, attempt) for host in range(hosts)] if attempt else []
    return [status for status in found if status is not None]


def device(folder: Folder, attempt: str) -> str:
    """On what the attempt computed; empty where no host has said it."""
    return next((each["device"] for each in read_timelines(folder) if each["attempt"] == attempt), "")
