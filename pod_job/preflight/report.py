"""The report on a job before it starts: memory, time and cost of its programs on the pod.

In: the configuration, the model's config.json and the tasks. Out: a report; no weight, TPU or network is needed. Where
a program does not fit or waits for its results to leave, it says what to change, and has compiled that too.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from pod_job.checkpoints.locate import find_model
from pod_job.config.load import load
from pod_job.config.schema import JobConfig, PodKind
from pod_job.errors import JobError
from pod_job.models.arch import read_arch_file
from pod_job.models.sharding import check_divides, stated
from pod_job.models.taps import Tap, resolve
from pod_job.models.weight_table import weight_table
from pod_job.planning.inputs import check_context
from pod_job.preflight.changes import checked_changes
from pod_job.preflight.forecast import Forecast
from pod_job.preflight.forecast_cache import cached
from pod_job.preflight.measured import measure
from pod_job.preflight.tpu_facts import BUCKET_BYTES_S, GB, PRICES_FROM, Slice, read_accelerator_type
from pod_job.preflight.whole_run import tokens_per_s, whole_run
from pod_job.prompts.tokens import end_tokens
from pod_job.storage.open import open_folder


def preflight(overrides: Sequence[str], run_dir: str | None = None) -> dict[str, Any]:
    """The report as JSON values. Raises JobError for whatever can be seen to be wrong with the job.

    `step` is the program of a step; with mode=generate it is the prefill, and `decode` a call that adds
    `tokens_in_turn` tokens to every row. `tokens_per_s` is what the pod does all told: of prompts, with mode=generate
    new ones. `run_dir`: of a run whose steps were timed, to compare them with.
    """
    config = load(overrides)
    pod = pod_slice(config)
    model_dir = find_model(config.model.path, config.model.revision).directory
    arch = read_arch_file(model_dir / "config.json")
    taps = resolve(config.extract.layers, config.extract.taps, arch.layers)
    table, ends = weight_table(arch), end_tokens(model_dir)
    check_context(config, arch)
    check_divides(table, config.mesh, config.sharding)

    def compiled(config: JobConfig, taps: tuple[Tap, ...]) -> list[Forecast]:
        from pod_job.preflight.pod_compiler import forecasts  # jax, only once the configuration is sound

        return forecasts(config, arch, taps, pod, ends)

    def forecast(config: JobConfig, taps: tuple[Tap, ...]) -> tuple[list[Forecast], bool]:
        return cached(config, arch, taps, ends, lambda: compiled(config, taps))

    found, known = forecast(config, taps)
    first = next((each for each in found if not each.fits), found[0])
    changes = checked_changes(config, arch, taps, first, lambda config, taps: forecast(config, taps)[0])
    run = asdict(whole_run(config, arch, taps, model_dir, pod, found)) if first.fits else None
    measured = measure(open_folder(run_dir), config, found) if run_dir and first.fits else None
    return {
        "model": config.model.path,
        "mode": config.mode.value,
        "pod": config.pod.accelerator_type,
        "hosts": pod.hosts,
        "weights": stated(table, config.mesh, config.sharding),
        "fits": first.fits,
        "cached": known,
        "step": found[0].report(),
        "decode": found[1].report() if len(found) > 1 else None,
        "tokens_per_s": tokens_per_s(config, found),
        "changes": changes,
        "run": run,
        "measured": measured,
        "rates": rates(config, pod),
        "prices": PRICES_FROM,
    }


def rates(config: JobConfig, pod: Slice) -> dict[str, Any]:
    """What the host link and the bucket take, in GB/s; those that the configuration does not set are assumptions."""
    host, bucket = config.preflight.host_gb_s, config.preflight.bucket_gb_s
    assumed = [name for name, rate in (("host_gb_s", host), ("bucket_gb_s", bucket)) if rate is None]
    return {
        "host_gb_s": host or pod.chip.host_bytes_s / GB,
        "bucket_gb_s": bucket or BUCKET_BYTES_S / GB,
        "assumed": assumed,
    }


def pod_slice(config: JobConfig) -> Slice:
    """The pod's slice. Raises JobError where it is no TPU pod, or its hosts are not what Google makes of the slice."""
    pod = config.pod
    if pod.kind is not PodKind.tpu or pod.accelerator_type is None:
        raise JobError(f"pod.kind={pod.kind.value}: a preflight is for TPU pods; set pod=v5e_64 or another of kind tpu")
    found = read_accelerator_type(pod.accelerator_type)
    if (pod.hosts, pod.devices_per_host) != (found.hosts, found.chips_per_host):
        raise JobError(
            f"pod.hosts={pod.hosts} x pod.devices_per_host={pod.devices_per_host}, but {pod.accelerator_type} is "
            f"{found.hosts} hosts of {found.chips_per_host} chips; set those"
        )
    return found
