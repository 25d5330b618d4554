"""The identity of a run: everything its vectors depend on, in run.json."""

import json
from datetime import date
from typing import Annotated, Any, Literal

import msgspec

from pod_job import __version__
from pod_job.config.schema import ConfigValues
from pod_job.errors import JobError
from pod_job.formats.records import Count, Record, decode, encode, now
from pod_job.run_folder.layout import FORMAT, RUN
from pod_job.run_folder.start import record_start, shareable
from pod_job.storage.folder import Folder, NameTaken


class ModelIdentity(Record, frozen=True, kw_only=True, omit_defaults=True):
    """The model; of imported vectors only name and hidden size are known."""

    name: str
    family: str | None = None
    layers: Count | None = None
    hidden_dim: Count
    dtype: str | None = None
    weights_fingerprint: str | None = None


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
    """Everything the vectors depend on; None where a run does not depend on it, or it is not known of an import.

    `template_date` is the day of the first start, which a chat template that writes the date takes for today.
    """

    model: ModelIdentity
    tokenizer: str | None = None
    template_date: date | None = None
    tasks: TasksIdentity
    taps: list[str]
    positions: str | None = None
    dtype: str
    seq_len: Count | None = None
    too_long: str | None = None
    exclude: list[str] | None = None
    save_every_n_samples: Annotated[int, msgspec.Meta(ge=1)]
    generate: GenerateIdentity | None = None
    shuffled: ShuffleIdentity | None = None


class RunRecord(Record, frozen=True):
    """run.json; `config` is the configuration of the first start as JSON values, null where no job made the run.

    It is without what `run_folder.start.shareable` leaves out.
    """

    format: Literal[2]
    identity: Identity
    config: ConfigValues | None
    created: str
    pod_job_version: str


def claim(folder: Folder, identity: Identity, config: ConfigValues | None = None) -> None:
    """Makes the folder this run's, or confirms that it is; JobError as `confirm` raises it.

    `config` tells how the run was started, and so where its prompts and its model are.
    """
    try:
        shared = None if config is None else shareable(config)
        folder.create(RUN, [encode(RunRecord(FORMAT, identity, shared, now(), __version__), indent=1)])
    except NameTaken:
        confirm(folder, identity)
    if config is not None:
        record_start(folder, config)


def confirm(folder: Folder, identity: Identity) -> None:
    """Raises JobError, naming every difference, where the folder holds a run with another identity."""
    if folder.stat(RUN) is None:
        return
    recorded = read_run(folder).identity
    differing = differences(msgspec.to_builtins(recorded), msgspec.to_builtins(identity))
    if differing:
        listed = "; ".join(f"{path} is {shown(a)} there, {shown(b)} here" for path, a, b in differing)
        raise JobError(f"storage.run_dir={folder.url} belongs to another run: {listed}; use another storage.run_dir")


def read_run(folder: Folder) -> RunRecord:
    """Returns the content of run.json. JobError where it is missing, damaged or of another format."""
    try:
        return decode(folder.read(RUN), RunRecord, f"{folder.url}/{RUN}")
    except FileNotFoundError:
        raise JobError(f"{folder.url} holds no run: {RUN} is missing") from None


def differences(a: Any, b: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """Returns every key path whose JSON values differ, with both; None for what is absent."""
    if isinstance(a, dict) and isinstance(b, dict):
        return [
            difference
            for key in sorted(a.keys() | b.keys())
            for difference in differences(a.get(key), b.get(key), f"{path}.{key}" if path else key)
        ]
    return [] if a == b else [(path, a, b)]


def shown(value: Any) -> str:
    """Returns a value of an identity as one line for people."""
    return value if isinstance(value, str) else "absent" if value is None else json.dumps(value)
