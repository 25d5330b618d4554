"""Prompt sources: the fields `tasks.*` of the configuration."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from omegaconf import MISSING

from pod_job.errors import JobError, at_least

TOKEN_DTYPES = ("uint8", "uint16", "uint32", "int16", "int32", "int64")


class TaskFormat(Enum):
    """`auto`: by the files' names; `arc`: ARC tasks; `jsonl`: one object per line; `dataset`: Parquet, Arrow or CSV
    tables, JSON lines, or a name on the Hugging Face hub; `text`: one document per file; `lines`: one document per
    line; `tokens`: arrays of token ids, .npy, .npz, .safetensors or .bin. Lines and text may be .gz or .zst."""

    auto = "auto"
    arc = "arc"
    jsonl = "jsonl"
    text = "text"
    lines = "lines"
    tokens = "tokens"
    dataset = "dataset"


class OnBroken(Enum):
    """Treatment of a task that cannot be used: `refuse` the run, or `skip` and count the task."""

    refuse = "refuse"
    skip = "skip"


class ArcPrompt(Enum):
    """`plain`: digits; `numbered`: with shapes and row numbers; `chat`: through the model's chat template."""

    plain = "plain"
    numbered = "numbered"
    chat = "chat"


class Augment(Enum):
    """Changes between the forms of a task that several predictions get."""

    none = "none"
    geometry = "geometry"
    colours = "colours"
    both = "both"


class Separator(Enum):
    """Token between documents that `tasks.concat` joins.

    `eos`: the end token after each document, as TransformerLens does; `bos`: the begin token before each document that
    does not begin a row, as SAELens does; `none`: no token. Every row begins with the begin token, where there is one.
    """

    eos = "eos"
    bos = "bos"
    none = "none"


@dataclass(kw_only=True)
class ArcConfig:
    prompt: ArcPrompt = ArcPrompt.plain
    predictions: int = 1  # predictions per test input
    augment: Augment = Augment.both  # augmentation of every prediction but the first
    seed: int = 0  # seed of the augmentations

    def __post_init__(self) -> None:
        at_least("tasks.arc.predictions", self.predictions, 1)


def check_json(name: str, value: object) -> None:
    """Raises JobError for a value, or one in it, that JSON does not have, as chat templates get theirs."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str) or not key:
                raise JobError(f"{name} has the name {key!r}; use texts as names")
            check_json(f"{name}.{key}", item)
    elif isinstance(value, list):
        for item in value:
            check_json(name, item)
    elif not isinstance(value, bool | int | float | str) or (isinstance(value, float) and not math.isfinite(value)):
        raise JobError(f"{name}={value!r:.100} is no value for a chat template; use true, false, a number or a text")


@dataclass(kw_only=True)
class TasksConfig:
    format: TaskFormat = TaskFormat.auto
    path: Any = MISSING  # files: a path, folder, glob, gs:// or hf:// URL, a name on the hub, or a list of these
    uploaded: Any = None  # set by `pod-job run`: for each path the gs:// URL that it was uploaded to, or null
    limit: int | None = None  # the first samples, at most this many
    max_tokens: int | None = None  # the first samples, with at most this many tokens in total
    sample: float | None = None  # part of the documents that is used, evenly from all of them: 0.01
    shuffle: int | None = None  # seed by which documents are shuffled over files; null: in the order of the files
    on_broken: OnBroken = OnBroken.refuse
    field: str = "text"  # the field with the text, the chat messages or the token ids; dots lead inside: a.b
    subset: str | None = None  # a name on the hub: its subset
    split: str = "train"  # a name on the hub, or a folder of save_to_disk: its split, or train[:1%]+test
    streaming: bool = False  # without effect: everything is read in ranges as it is needed
    dtype: str | None = None  # tokens in a .bin file: uint16, int32, ...
    row_tokens: int | None = None  # tokens of a sample, in a .bin file or a one-dimensional array
    arc: ArcConfig = dataclasses.field(default_factory=ArcConfig)
    concat: bool = False  # joins documents into full rows, with attention across them, batch by batch
    separator: Separator = Separator.eos
    system: str | None = None  # chats that have no system message get this one
    template_kwargs: Any = None  # values for the chat template: {enable_thinking: false}

    def __post_init__(self) -> None:
        self._check_template_kwargs()
        if self.separator is not Separator.eos and not self.concat:
            raise JobError(f"tasks.separator={self.separator.value} is between joined documents; set tasks.concat=true")
        for name in ("limit", "max_tokens", "row_tokens"):
            value = getattr(self, name)
            if value is not None:
                at_least(f"tasks.{name}", value, 1)
        if self.shuffle is not None:
            at_least("tasks.shuffle", self.shuffle, 0)
        if self.sample is not None and not 0 < self.sample <= 1:
            raise JobError(f"tasks.sample={self.sample} is no part of the documents; use more than 0, at most 1")
        if self.path != "" and not (self.paths and all(isinstance(path, str) and path for path in self.paths)):
            raise JobError(f"tasks.path={self.path!r:.100} is neither a path nor a list of paths")
        self._check_uploaded()
        if self.dtype is not None and self.dtype not in TOKEN_DTYPES:
            raise JobError(f"tasks.dtype={self.dtype} is no dtype of token ids; use one of {', '.join(TOKEN_DTYPES)}")
        self.check_format(self.format)

    def _check_template_kwargs(self) -> None:
        if self.template_kwargs is None:
            return
        if not isinstance(self.template_kwargs, dict):
            raise JobError(f"tasks.template_kwargs={self.template_kwargs!r:.100} must be {{name: value}}")
        check_json("tasks.template_kwargs", self.template_kwargs)

    def _check_uploaded(self) -> None:
        if self.uploaded is None:
            return
        places = self.uploaded if isinstance(self.uploaded, list | tuple) else []
        good = [place is None or (isinstance(place, str) and place.startswith("gs://")) for place in places]
        if len(places) != len(self.paths) or not all(good):
            raise JobError(
                f"tasks.uploaded={self.uploaded!r:.100} is not a gs:// URL, or null, for each path of tasks.path; "
                "leave it out: `pod-job run` sets it"
            )

    @property
    def template_values(self) -> Mapping[str, object]:
        """The values of `template_kwargs`."""
        return self.template_kwargs or {}

    @property
    def paths(self) -> list[Any]:
        """The places of `path`, which may be one or a list."""
        return list(self.path) if isinstance(self.path, list | tuple) else [self.path]

    @property
    def places(self) -> list[str]:
        """Places that `paths` are read at: the path itself, or its upload for hosts that do not see it."""
        uploaded = self.uploaded or [None] * len(self.paths)
        return [place or path for path, place in zip(self.paths, uploaded, strict=True)]

    def check_format(self, format: TaskFormat) -> None:
        """Raises JobError for fields that are set, though this format does not read them."""
        if format is TaskFormat.auto:
            return
        if format is not TaskFormat.dataset:
            of_dataset = {"streaming": self.streaming, "subset": self.subset, "split": self.split}
            self._refuse_others(format, of_dataset, "only with dataset")
        if format not in (TaskFormat.dataset, TaskFormat.jsonl):
            self._refuse_others(format, {"field": self.field}, "only with jsonl and dataset")
        if format is not TaskFormat.tokens:
            of_tokens = {"dtype": self.dtype, "row_tokens": self.row_tokens}
            self._refuse_others(format, of_tokens, "only with tokens")

    def _refuse_others(self, format: TaskFormat, values: dict[str, object], formats: str) -> None:
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for name, value in values.items():
            if value != defaults[name]:
                shown = str(value).lower() if isinstance(value, bool) else value
                raise JobError(f"tasks.{name}={shown} does not go with tasks.format={format.value}; {formats}")
