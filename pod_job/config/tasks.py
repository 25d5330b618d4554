"""Prompt sources: the fields `tasks.*` of the configuration."""

import dataclasses
from dataclasses import dataclass
from enum import Enum

from omegaconf import MISSING

from pod_job.errors import JobError, at_least


class TaskFormat(Enum):
    """`arc`: ARC tasks, a file or a folder; `jsonl`: one object per line; `text`: a folder of .txt files; `tokens`: an
    array of token ids, .npy or .safetensors; `dataset`: Hugging Face datasets, on the hub or in a local folder."""

    arc = "arc"
    jsonl = "jsonl"
    text = "text"
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


@dataclass(kw_only=True)
class ArcConfig:
    prompt: ArcPrompt = ArcPrompt.plain
    predictions: int = 1  # predictions per test input
    augment: Augment = Augment.both  # augmentation of every prediction but the first
    seed: int = 0  # seed of the augmentations

    def __post_init__(self) -> None:
        at_least("tasks.arc.predictions", self.predictions, 1)


@dataclass(kw_only=True)
class TasksConfig:
    format: TaskFormat = TaskFormat.arc
    path: str = MISSING  # a file or a folder; with format=dataset also a name on the hub
    limit: int | None = None  # the first samples, at most this many
    max_tokens: int | None = None  # the first samples, with at most this many tokens in total
    on_broken: OnBroken = OnBroken.refuse
    field: str = "text"  # jsonl, dataset: the field with the text, the chat messages or the token ids
    subset: str | None = None  # dataset: its subset
    split: str = "train"  # dataset: its split
    streaming: bool = False  # dataset: read it as a stream instead of downloading it first
    arc: ArcConfig = dataclasses.field(default_factory=ArcConfig)

    def __post_init__(self) -> None:
        for name in ("limit", "max_tokens"):
            value = getattr(self, name)
            if value is not None:
                at_least(f"tasks.{name}", value, 1)
        if self.format is not TaskFormat.dataset:
            of_dataset = {"streaming": self.streaming, "subset": self.subset, "split": self.split}
            self._refuse_others(of_dataset, "only with dataset")
            if self.format is not TaskFormat.jsonl:
                self._refuse_others({"field": self.field}, "only with jsonl and dataset")

    def _refuse_others(self, values: dict[str, object], formats: str) -> None:
        """Raises JobError for fields that are set, though the format does not read them."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for name, value in values.items():
            if value != defaults[name]:
                shown = str(value).lower() if isinstance(value, bool) else value
                raise JobError(f"tasks.{name}={shown} does not go with tasks.format={self.format.value}; {formats}")
