"""The identity of a run: everything its vectors depend on, in run.json."""

import logging
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Annotated, Literal

import msgspec

from pod_job import __version__
from pod_job.config.schema import ConfigValues
from pod_job.errors import JobError
from pod_job.formats.records import DAMAGED, Count, Record, encode, now, read_file
from pod_job.run_folder.accepted import accepted, refusal, write_accepted
from pod_job.run_folder.architecture import ArchRecord
from pod_job.run_folder.differences import Difference, differences
from pod_job.run_folder.layout import COMMITS, FORMAT, METADATA, REPAIR, RUN
from pod_job.run_folder.start import record_start, shareable
from pod_job.run_folder.train_identity import TrainIdentity
from pod_job.storage.folder import Folder, NameTaken

log = logging.getLogger("pod_job")

LATER_FIELDS = ("model.architecture", "model.weights", "tokenizer_files", "token_probe")
"""Fields that run.json of 0.1.0 does not have: where they are not recorded, they are not compared."""


class ModelIdentity(Record, frozen=True, kw_only=True, omit_defaults=True):
    """The model; of imported vectors only name and hidden size are known.

    `weights` has the checksum of each file of the weights. Runs of 0.1.0 have `weights_fingerprint` instead, over the
    first 4 KiB of each tensor.
    """

    name: str
    family: str | None = None
    layers: Count | None = None
    hidden_dim: Count
    dtype: str | None = None
    weights_fingerprint: str | None = None
    architecture: ArchRecord | None = None
    weights: dict[str, str] | None = None


class TasksIdentity(Record, frozen=True, kw_only=True, omit_defaults=True):
    """The samples, by the fingerprint of their content; `skipped` counts broken tasks that were left out."""

    format: str | None = None
    fingerprint: str | None = None
    samples: Count
    skipped: Count | None = None
    skipped_by_reason: dict[str, Count] | None = None


class GenerateIdentity(Record, frozen=True):
    """Settings by which completions were made."""

    max_new_tokens: Count
    temperature: float
    seed: int
    stop: list[str]
    end_tokens: list[int]


class TemplateIdentity(Record, frozen=True, omit_defaults=True):
    """Input of chat templates beside the chats: a system message for those without one, and values."""

    system: str | None = None
    values: dict[str, object] = msgspec.field(default_factory=dict)


class RelativeErrors(Record, frozen=True):
    """Relative L2 errors of a tap's rows by their rounding to eight bits."""

    rms: float
    largest: float


class ShuffleIdentity(Record, frozen=True, omit_defaults=True):
    """The run whose rows were shuffled: its samples and samples per batch; `rounding` by tap."""

    seed: int
    samples: Count
    batch_samples: Count
    rounding: dict[str, RelativeErrors] = msgspec.field(default_factory=dict)


class Identity(Record, frozen=True, kw_only=True, omit_defaults=True):
    """Everything the vectors depend on, with `train` SAEs; None where a run does not, or it is not known of an import.

    `template_date` is the day of the first start, which a chat template that writes the date takes for today.
    `tokenizer_files` has the SHA-256 of each file that the tokenizer is made from, `token_probe` that of what it makes
    of sample texts and of some prompts of the run. Runs of 0.1.0 have `tokenizer` instead, over some of the files.
    `positions` is as it is written in an override: `every=8`.
    """

    model: ModelIdentity
    tokenizer: str | None = None
    template_date: date | None = None
    tokenizer_files: dict[str, str] | None = None
    token_probe: str | None = None
    tasks: TasksIdentity
    taps: list[str]
    positions: str | None = None
    dtype: str
    seq_len: Count | None = None
    too_long: str | None = None
    overlap: Count | None = None
    sample_seed: Count | None = None
    roles: list[str] | None = None
    columns: list[str] | None = None
    chat_template: TemplateIdentity | None = None
    concat: str | None = None
    exclude: list[str] | None = None
    save_every_n_samples: Annotated[int, msgspec.Meta(ge=1)]
    generate: GenerateIdentity | None = None
    shuffled: ShuffleIdentity | None = None
    train: TrainIdentity | None = None


class RunRecord(Record, frozen=True):
    """run.json; `config` is the configuration of the first start as JSON values, null where no job made the run.

    It is without what `run_folder.start.shareable` leaves out.
    `packages` are the versions that the first start had, `unread` the tensors that the checkpoint has and the run does
    not read.
    """

    format: Literal[2]
    identity: Identity
    config: ConfigValues | None
    created: str
    pod_job_version: str
    packages: dict[str, str] = msgspec.field(default_factory=dict)
    unread: list[str] = msgspec.field(default_factory=list)


def claim(
    folder: Folder,
    identity: Identity,
    config: ConfigValues | None = None,
    accept: Sequence[str] = (),
    packages: Mapping[str, str] = {},
    unread: Sequence[str] = (),
) -> None:
    """Makes the folder this run's, or confirms that it is; JobError as `confirm` raises it.

    Args:
        config: how the run was started, and so where its prompts and its model are.
        accept: as in `confirm`; differences that are accepted are recorded in the folder.
        packages, unread: as in RunRecord.
    """
    shared = None if config is None else shareable(config)
    record = RunRecord(FORMAT, identity, shared, now(), __version__, dict(packages), list(unread))
    try:
        folder.create(RUN, [encode(record, indent=1)])
    except NameTaken:
        earlier = read_run(folder)
        write_accepted(folder, confirm(folder.url, earlier, identity, accept, packages))
        for package, was, is_now in version_changes(earlier, packages):
            log.info("%s is %s in the run, %s here; it makes the same tokens of its prompts", package, was, is_now)
    if config is not None:
        record_start(folder, config)


def confirm(
    url: str, record: RunRecord, identity: Identity, accept: Sequence[str] = (), packages: Mapping[str, str] = {}
) -> list[Difference]:
    """Returns the differences of the folder's run, as `record` has it, that `accept` names by their fields.

    Raises:
        JobError: there are others, and the message lists them; or `accept` names what cannot be accepted.
    """
    recorded, current = msgspec.to_builtins(record.identity), msgspec.to_builtins(identity)
    differing = [
        (path, was, is_now)
        for path, was, is_now in differences(recorded, current)
        if not (was is None and path in LATER_FIELDS)
    ]
    if open_differences := [difference for difference in differing if not accepted(difference[0], accept)]:
        raise refusal(url, open_differences, version_changes(record, packages))
    return differing


def version_changes(record: RunRecord, packages: Mapping[str, str]) -> list[Difference]:
    """Returns the packages that have another version than at the run's first start, where that recorded them."""
    return differences(record.packages, dict(packages)) if record.packages else []


def read_run(folder: Folder) -> RunRecord:
    """Returns the content of run.json. JobError where it is missing, damaged or of another format."""
    run = find_run(folder)
    if run is None:
        lost = folder.names(COMMITS) or folder.names(METADATA)
        held = f"a run of which {RUN} is lost; {REPAIR}" if lost else f"no run: {RUN} is missing"
        raise JobError(f"{folder.url} holds {held}")
    return run


def check_holds_vectors(folder: Folder, run: RunRecord) -> None:
    """Raises JobError for the run of a training."""
    if run.identity.train is not None:
        raise JobError(
            f"{folder.url} holds SAEs and no vectors, as the run of a training does; give a run that extracts "
            "(mode=prefill or generate)"
        )


def find_run(folder: Folder) -> RunRecord | None:
    """Returns the content of run.json; None where no start has claimed the folder. JobError where it is damaged."""
    try:
        return read_file(folder, RUN, RunRecord, f"{DAMAGED}: {REPAIR}, without it")
    except FileNotFoundError:
        return None
