"""The compilers of a job's programs; they import jax, only once the configuration is sound."""

from pod_job.preflight.forecast import Forecast
from pod_job.preflight.planned_job import PlannedJob, PlannedTrainer


def compile_programs(job: PlannedJob) -> list[Forecast]:
    from pod_job.preflight.pod_compiler import forecasts

    return forecasts(job)


def compile_trainer(planned: PlannedTrainer) -> list[Forecast]:
    from pod_job.preflight.trainer_compiler import trainer_forecasts

    return trainer_forecasts(planned)
