"""PlannedJob: a job before it starts, with the sizes of its model and the slice it is for. No jax."""

from dataclasses import dataclass

from pod_job.config.schema import JobConfig
from pod_job.models.arch import Arch
from pod_job.models.taps import Tap
from pod_job.preflight.tpu_facts import Slice


@dataclass(frozen=True)
class PlannedJob:
    """A job whose programs can be compiled: no weight, TPU or network is needed.

    Attributes:
        taps: those of `config.extract`, or fewer in a proposal that has no override for them.
        end_tokens: ids that end a completion, with mode=generate.
    """

    config: JobConfig
    arch: Arch
    taps: tuple[Tap, ...]
    pod: Slice
    end_tokens: tuple[int, ...] = ()
