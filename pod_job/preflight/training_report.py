"""Plans a training on a pod before it starts: its programs, how they go together, and the whole run."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec

from pod_job.config.schema import JobConfig
from pod_job.config.train import TrainSource
from pod_job.formats.safetensors import DTYPE_OF
from pod_job.planning.training import SourceRun, read_run_source
from pod_job.planning.training_schedule import stream_identity
from pod_job.preflight.changes import checked_changes
from pod_job.preflight.compilers import compile_programs, compile_trainer
from pod_job.preflight.forecast import Forecast
from pod_job.preflight.forecast_cache import cached
from pod_job.preflight.planned_job import PlannedTrainer, planned_job
from pod_job.preflight.records import Change, WholeRun
from pod_job.preflight.tpu_facts import BUCKET_BYTES_S, Slice
from pod_job.preflight.training_forecast import (
    TrainingForecast,
    beside_model,
    smaller_buffer,
    training_forecast,
    with_reading,
)
from pod_job.preflight.whole_run import priced, start_times
from pod_job.run_folder.bucket_rate import BucketRate
from pod_job.units import GB


@dataclass(frozen=True)
class TrainingPrograms:
    """Forecasts of a training; `forward` is None where rows are read from a run, `training` where it does not fit."""

    model: str
    weights: str
    was_cached: bool
    forward: Forecast | None
    trainer: Forecast
    training: TrainingForecast | None
    changes: list[Change]
    run: WholeRun | None


def plan_training(config: JobConfig, pod: Slice, measured_rate: BucketRate | None) -> TrainingPrograms:
    """Compiles the programs of a job with mode=train. JobError as of `preflight`."""
    if config.train.source is TrainSource.run:
        return plan_on_run(config, pod, measured_rate)
    job, weights, _ = planned_job(config, pod)
    [forward], was_cached = cached(job, compile_programs)
    widths = {tap.name: tap.width(job.arch) for tap in job.taps}
    planned = PlannedTrainer(config, stream_identity(config, widths), widths, pod)
    [alone], trainer_was_cached = cached(planned, compile_trainer)
    trainer = beside_model(alone, forward)
    training = training_forecast(trainer, forward) if forward.fits and trainer.fits else None
    if forward.fits:
        changes = smaller_buffers(planned, trainer, forward)
    else:
        changes = checked_changes(job, forward, lambda changed: cached(changed, compile_programs)[0])
    return TrainingPrograms(
        model=config.model.path,
        weights=weights,
        was_cached=was_cached and trainer_was_cached,
        forward=forward,
        trainer=trainer,
        training=training,
        changes=changes,
        run=whole_training(planned, (forward, trainer), training),
    )


def plan_on_run(config: JobConfig, pod: Slice, measured_rate: BucketRate | None) -> TrainingPrograms:
    """Compiles the trainer of a job whose rows are read from a run. JobError as of `preflight`."""
    inputs = read_run_source(config, None)
    assert inputs.run is not None
    planned = PlannedTrainer(config, inputs.train, inputs.widths, pod)
    [trainer], was_cached = cached(planned, compile_trainer)
    training = None
    if trainer.fits:
        size = sum(inputs.widths.values()) * stored_item_bytes(inputs.run) * inputs.train.batch_rows // pod.hosts
        given = config.preflight.bucket_gb_s
        rate = measured_rate.read_bytes_s / GB if measured_rate else given or BUCKET_BYTES_S / GB
        training = with_reading(training_forecast(trainer, None), size, rate, given is None)
    return TrainingPrograms(
        model=inputs.identity.model.name,
        weights="none: rows are read from a run",
        was_cached=was_cached,
        forward=None,
        trainer=trainer,
        training=training,
        changes=smaller_buffers(planned, trainer, None),
        run=whole_training(planned, (trainer,), training),
    )


def stored_item_bytes(run: SourceRun) -> int:
    """Returns the bytes of one value of a stored vector; scales of quantized ones are not counted."""
    return DTYPE_OF[run.metadata.dtype].itemsize


def smaller_buffers(planned: PlannedTrainer, trainer: Forecast, forward: Forecast | None) -> list[Change]:
    """Returns the shuffle buffer with which a training fits that does not, compiled; none where it does."""
    rows = None if trainer.fits else smaller_buffer(trainer, planned.train.buffer_rows)
    if rows is None:
        return []
    train = msgspec.structs.replace(planned.train, buffer_rows=rows)
    [outcome], _ = cached(replace(planned, train=train), compile_trainer)
    outcome = outcome if forward is None else beside_model(outcome, forward)
    return [Change(change=f"train.buffer_rows={rows}", **msgspec.structs.asdict(outcome))]


def whole_training(
    planned: PlannedTrainer, programs: Sequence[Forecast], training: TrainingForecast | None
) -> WholeRun | None:
    """Returns the time and cost of all steps; the rows that fill the buffer at first are those of the last steps."""
    if training is None:
        return None
    train = planned.train
    rows, seconds = train.rows, train.steps * training.step_s
    run = WholeRun(
        samples=0,
        tokens=rows,
        new_tokens=0,
        rows=rows,
        bytes=0,
        steps=train.steps,
        hours=seconds / 3600,
    )
    return priced(run, start_times(planned.config, programs, planned.pod), planned.config)
