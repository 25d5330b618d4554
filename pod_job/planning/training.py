"""Everything that training starts from, checked before a device is touched: SAEs, schedule, and where vectors are from.

No jax: the launcher calls it on a workstation, before any host starts, and every host calls it again for itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from pod_job.config.generate import Mode
from pod_job.config.load import to_json
from pod_job.config.schema import JobConfig
from pod_job.config.train import SaeSpec, TrainSource, taps_of
from pod_job.errors import JobError
from pod_job.models.sharding import row_shards
from pod_job.planning.identity import package_versions
from pod_job.planning.inputs import Inputs, read_inputs
from pod_job.planning.prompt_survey import PromptSurvey, survey_run
from pod_job.planning.task_index import COUNTED_HERE, TaskReading
from pod_job.planning.training_schedule import steps_of, train_identity
from pod_job.run_folder.identity import Identity, RunRecord, claim, confirm, find_run
from pod_job.run_folder.layout import METADATA
from pod_job.run_folder.metadata import Metadata, content_checksum, read_any
from pod_job.run_folder.train_identity import TrainIdentity
from pod_job.run_folder.training import has_saes
from pod_job.storage.folder import Folder, exists
from pod_job.storage.open import open_folder


@dataclass(frozen=True)
class SourceRun:
    """A finished run whose vectors are trained on."""

    folder: Folder
    metadata: Metadata


@dataclass(frozen=True)
class TrainInputs:
    """Training as checked: one of `stream` and `run` is there, `identity` is that of the SAEs."""

    config: JobConfig
    folder: Folder
    specs: tuple[SaeSpec, ...]
    identity: Identity
    train: TrainIdentity
    recorded: RunRecord | None
    stream: Inputs | None = None
    run: SourceRun | None = None

    @property
    def total_batches(self) -> int:
        """The training steps, by which progress is counted."""
        return self.train.steps

    @property
    def widths(self) -> dict[str, int]:
        """Size of a vector of each tap that an SAE is trained on."""
        widths = self.run.metadata.widths if self.run else self.stream.widths if self.stream else {}
        return {name: widths[name] for name in taps_of(self.specs)}


JobInputs = Inputs | TrainInputs
"""Everything that a job of any mode starts from."""


def read_train_inputs(
    config: JobConfig, folder: Folder | None = None, reading: TaskReading = COUNTED_HERE
) -> TrainInputs:
    """Reads what SAEs are trained on, and checks that everything fits together. JobError as `read_inputs` raises it."""
    if config.train.source is TrainSource.run:
        return read_run_source(config, folder)
    inputs = read_inputs(config, folder, reading)
    assert inputs.train is not None
    specs = tuple(config.train.specs)
    return TrainInputs(config, inputs.folder, specs, inputs.identity, inputs.train, inputs.recorded, stream=inputs)


def read_job_inputs(config: JobConfig, folder: Folder | None = None, reading: TaskReading = COUNTED_HERE) -> JobInputs:
    """Reads and checks what the job of any mode starts from. JobError as `read_inputs` raises it."""
    read = read_train_inputs if config.mode is Mode.train else read_inputs
    return read(config, folder, reading)


def prompts_of(inputs: JobInputs) -> Inputs | None:
    """Returns the inputs of the forward pass; None for training on a finished run, which has none."""
    return inputs.stream if isinstance(inputs, TrainInputs) else inputs


def look_at_prompts(inputs: JobInputs) -> None:
    """Looks at a sample of the prompts, where there are some. JobError for what hosts would refuse."""
    prompts = prompts_of(inputs)
    survey = None if prompts is None else survey_run(prompts)
    if survey is not None and prompts is not None and isinstance(inputs, TrainInputs):
        check_tokens(inputs, survey, len(prompts.tasks.samples))


def check_tokens(inputs: TrainInputs, survey: PromptSurvey, samples: int) -> None:
    """Raises JobError where the prompts, by those looked at, have fewer tokens than the schedule takes."""
    most = survey.tokens_per_sample * samples * (1 + survey.tokens_error)
    wanted, epochs = inputs.train.rows, inputs.config.train.epochs
    if wanted > most * epochs:
        settings = inputs.config.train
        given = f"train.steps={settings.steps}" if settings.tokens is None else f"train.tokens={settings.tokens}"
        fits = int(most * epochs)
        fix = fits if settings.tokens is not None else fits // inputs.train.batch_rows
        raise JobError(
            f"{given} needs {wanted:,} tokens, and train.epochs={epochs} of {samples:,} samples of "
            f"{survey.tokens_per_sample:,.0f} tokens are {fits:,}; lower it to {fix}, raise train.epochs to "
            f"{-(-wanted // max(1, int(most)))}, or give more prompts"
        )


def is_complete(folder: Folder, mode: Mode) -> bool:
    """Returns whether the run in the folder, which is of this mode, has its metadata, and all that it describes.

    Raises:
        JobError: the metadata is damaged, or a file of an SAE that it lists is missing.
    """
    if mode is Mode.train:
        return has_saes(folder)
    return exists(folder, METADATA) and read_any(folder).complete


def read_run_source(config: JobConfig, folder: Folder | None) -> TrainInputs:
    """Returns the inputs of training on a finished run."""
    source = open_folder(config.train.run or "", "train.run")
    metadata = read_any(source)
    if not metadata.complete:
        missing, total = len(metadata.missing), metadata.total_batches
        raise JobError(f"train.run={source.url}: {missing} of {total} batches are missing; finish that run first")
    out = folder or open_folder(config.storage.run_dir)
    if out.url == source.url:
        raise JobError(f"storage.run_dir={out.url} is train.run, too; give the SAEs a folder of their own")
    specs = tuple(config.train.specs)
    check_taps(specs, metadata.taps, f"{source.url} has {shortened(metadata.taps)}")
    if config.train.batch_rows % (shards := row_shards(config.mesh, config.sharding)):
        raise JobError(
            f"train.batch_rows={config.train.batch_rows} is not divisible by the {shards} devices that rows are split "
            f"over; use {-(-config.train.batch_rows // shards) * shards}"
        )
    steps = steps_of(config.train, metadata.rows)
    train = train_identity(config.train, metadata.widths, steps)
    train = msgspec.structs.replace(train, run=content_checksum(metadata))
    identity = msgspec.structs.replace(metadata.provenance, train=train)
    recorded = find_run(out)
    if recorded is not None:
        confirm(out.url, recorded, identity, config.storage.accept_identity, package_versions())
    return TrainInputs(config, out, specs, identity, train, recorded, run=SourceRun(source, metadata))


def check_taps(specs: Sequence[SaeSpec], available: Sequence[str], where: str) -> None:
    """Raises JobError for an SAE of a tap that is not available."""
    for name in taps_of(specs):
        if name not in available:
            raise JobError(f"train.saes: tap={name} is not in the run that train.run names: {where}; use one of these")


def shortened(names: Sequence[str], most: int = 12) -> str:
    """Returns the names in one line, the first ones of many."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def claim_training(inputs: TrainInputs) -> None:
    """Makes the run folder that of these SAEs, or confirms that it is. JobError where it is another's."""
    accept, packages = inputs.config.storage.accept_identity, package_versions()
    claim(inputs.folder, inputs.identity, to_json(inputs.config), accept, packages)
