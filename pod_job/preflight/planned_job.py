"""A job before it starts, with the sizes of its model, its SAEs and the slice it is for. No jax."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from msgspec import to_builtins

from pod_job.checkpoints.locate import find_model
from pod_job.config.load import to_json
from pod_job.config.schema import JobConfig
from pod_job.models.arch import Arch, read_arch_file
from pod_job.models.sharding import check_divides, sharding_line
from pod_job.models.taps import Tap, resolve
from pod_job.planning.inputs import Sizes, check_context, needed_weights
from pod_job.preflight.chosen_rows import with_chosen_rows
from pod_job.preflight.tpu_facts import Slice
from pod_job.prompts.tokenizer import end_tokens
from pod_job.run_folder.train_identity import TrainIdentity

FIELDS = ("mode", "mesh", "sharding", "extract", "generate", "preflight")


@dataclass(frozen=True)
class PlannedJob:
    """A job whose programs can be compiled: no weight, TPU or network is needed.

    Attributes:
        taps: those of `config.extract`, or fewer in a proposal that has no override for them.
        end_tokens: ids that end a completion, with mode=generate.
        prefix: tokens that prompts share and that are computed once; a preflight does not know of any.
    """

    config: JobConfig
    arch: Arch
    taps: tuple[Tap, ...]
    pod: Slice
    end_tokens: tuple[int, ...] = ()
    prefix: int = 0

    def facts(self) -> str:
        """Returns everything of the job that its forecasts depend on, as JSON."""
        values = to_json(self.config)
        facts = {name: values[name] for name in FIELDS}
        facts |= {"pod": self.config.pod.accelerator_type, "dtype": self.config.model.dtype.value}
        facts |= {
            "ends": self.end_tokens,
            "prefix": self.prefix,
            "arch": asdict(self.arch),
            "taps": [tap.name for tap in self.taps],
        }
        return json.dumps(facts, sort_keys=True)


@dataclass(frozen=True)
class PlannedTrainer:
    """The trainer of a job with mode=train; `widths` are the sizes of the vectors of its taps."""

    config: JobConfig
    train: TrainIdentity
    widths: Mapping[str, int]
    pod: Slice

    def facts(self) -> str:
        """Returns everything of the trainer that its forecast depends on, as JSON."""
        values = to_json(self.config)
        facts = {"pod": self.config.pod.accelerator_type, "mesh": values["mesh"], "sharding": values["sharding"]}
        facts |= {"train": to_builtins(self.train), "widths": dict(self.widths)}
        return json.dumps(facts, sort_keys=True)


def planned_job(config: JobConfig, pod: Slice) -> tuple[PlannedJob, str, Path]:
    """Returns the job, how its weights are split in words, and the model's folder.

    Raises:
        JobError: the model is not there, or the job does not go with it.
    """
    model_dir = find_model(config.model.path, config.model.revision).directory
    arch = read_arch_file(model_dir / "config.json")
    taps = resolve(config.extract.layers, config.extract.taps, arch)
    table = needed_weights(config, arch)
    check_context(config, arch)
    check_divides(table, config.mesh, config.sharding)
    weights = sharding_line(table, config.mesh, config.sharding)
    config = with_chosen_rows(Sizes(config, arch, taps, table)).config
    return PlannedJob(config, arch, taps, pod, end_tokens(model_dir)), weights, model_dir
