"""Makes the report on a job before it starts: memory, time and cost of its programs on the pod.

It takes the configuration, the model's config.json and the tasks; no weight, TPU or network is needed. Where a program
does not fit or waits for its results to leave, the report has changes that were compiled too.
"""

from collections.abc import Sequence
from dataclasses import replace

from pod_job.config.generate import Mode
from pod_job.config.load import load
from pod_job.config.schema import JobConfig, PodKind
from pod_job.errors import JobError
from pod_job.formats.records import DamagedRecord
from pod_job.preflight.changes import checked_changes, deciding_forecast
from pod_job.preflight.compilers import compile_programs
from pod_job.preflight.forecast_cache import cached
from pod_job.preflight.measured import measure
from pod_job.preflight.planned_job import planned_job
from pod_job.preflight.records import PreflightReport, Rates
from pod_job.preflight.tpu_facts import BUCKET_BYTES_S, PRICES_FROM, Slice, read_accelerator_type
from pod_job.preflight.training_report import plan_training
from pod_job.preflight.whole_run import tokens_per_s, whole_run
from pod_job.run_folder.bucket_rate import BucketRate, read_rate
from pod_job.storage.open import open_folder
from pod_job.units import GB


def preflight(overrides: Sequence[str], run_dir: str | None = None) -> PreflightReport:
    """Returns the report on the job that `overrides` configure.

    Args:
        run_dir: folder of a run whose steps were timed, to compare the forecasts with.
    Raises:
        JobError: the job is wrong in a way that shows before it starts.
    """
    config = load(overrides)
    pod = pod_slice(config)
    measured_rate = find_rate(config, pod)
    config = with_rate(config, measured_rate)
    if config.mode is Mode.train:
        return training_report(config, pod, measured_rate, run_dir)
    job, weights, model_dir = planned_job(config, pod)
    forecasts, was_cached = cached(job, compile_programs)
    deciding = deciding_forecast(forecasts)
    return PreflightReport(
        model=config.model.path,
        mode=config.mode,
        pod=str(config.pod.accelerator_type),
        hosts=pod.hosts,
        weights=weights,
        fits=deciding.fits,
        cached=was_cached,
        step=forecasts[0],
        decode=forecasts[1] if len(forecasts) > 1 else None,
        tokens_per_s=tokens_per_s(config, forecasts),
        changes=checked_changes(job, deciding, lambda changed: cached(changed, compile_programs)[0]),
        run=whole_run(job, model_dir, forecasts) if deciding.fits else None,
        measured=measure(open_folder(run_dir), config, forecasts) if run_dir and deciding.fits else None,
        rates=rates(config, pod, measured_rate),
        prices=PRICES_FROM,
    )


def training_report(
    config: JobConfig, pod: Slice, measured_rate: BucketRate | None, run_dir: str | None
) -> PreflightReport:
    """Returns the report on a job with mode=train. JobError as of `preflight`."""
    if run_dir is not None:
        raise JobError(f"--measured={run_dir}: steps of mode=train are not compared with a run's; leave it out")
    planned = plan_training(config, pod, measured_rate)
    training = planned.training
    return PreflightReport(
        model=planned.model,
        mode=config.mode,
        pod=str(config.pod.accelerator_type),
        hosts=pod.hosts,
        weights=planned.weights,
        fits=training is not None,
        cached=planned.was_cached,
        step=planned.forward or planned.trainer,
        decode=None,
        tokens_per_s=training.tokens_per_s if training else 0.0,
        changes=planned.changes,
        run=planned.run,
        measured=None,
        rates=rates(config, pod, measured_rate),
        prices=PRICES_FROM,
        trainer=planned.trainer if planned.forward else None,
        training=training,
    )


def find_rate(config: JobConfig, pod: Slice) -> BucketRate | None:
    """Returns the bucket's rate as hosts of such a kind have measured it; None where nobody has, or none is needed.

    Raises:
        DamagedRecord: the record is there and cannot be read.
    """
    if config.preflight.bucket_gb_s is not None:
        return None
    try:
        rate = read_rate(open_folder(config.storage.run_dir))
        measured_on = None if rate is None else read_accelerator_type(rate.accelerator_type)
    except DamagedRecord:
        raise
    except JobError:  # the folder cannot be read from here, which a preflight does not need
        return None
    same_hosts = measured_on and (measured_on.chip, measured_on.chips_per_host) == (pod.chip, pod.chips_per_host)
    return rate if same_hosts else None


def with_rate(config: JobConfig, rate: BucketRate | None) -> JobConfig:
    if rate is None:
        return config
    return replace(config, preflight=replace(config.preflight, bucket_gb_s=rate.write_bytes_s / GB))


def rates(config: JobConfig, pod: Slice, measured_rate: BucketRate | None) -> Rates:
    """Returns the rates of the host link and the bucket; those that the configuration leaves open are assumptions."""
    host, bucket = config.preflight.host_gb_s, config.preflight.bucket_gb_s
    return Rates(
        host_gb_s=host or pod.chip.host_bytes_s / GB,
        bucket_gb_s=bucket or BUCKET_BYTES_S / GB,
        assumed=[name for name, rate in (("host_gb_s", host), ("bucket_gb_s", bucket)) if rate is None],
        bucket_origin=measured_rate.origin if measured_rate else "",
    )


def pod_slice(config: JobConfig) -> Slice:
    """Returns the pod's slice.

    Raises:
        JobError: it is not a TPU pod, or its hosts are not those that Google gives the slice.
    """
    pod = config.pod
    if pod.kind is not PodKind.tpu or pod.accelerator_type is None:
        raise JobError(f"pod.kind={pod.kind.value}: a preflight is for TPU pods; set pod=v5e_64 or another of kind tpu")
    sold = read_accelerator_type(pod.accelerator_type)
    if (pod.hosts, pod.devices_per_host) != (sold.hosts, sold.chips_per_host):
        raise JobError(
            f"pod.hosts={pod.hosts} x pod.devices_per_host={pod.devices_per_host}, but {pod.accelerator_type} is "
            f"{sold.hosts} hosts of {sold.chips_per_host} chips; set those"
        )
    return sold
