"""What prompts the job reads: the fields `tasks.*` of the configuration."""

import dataclasses
from dataclasses import dataclass
from enum import Enum

from omegaconf import MISSING

from pod_job.errors import JobError, at_least


class TaskFormat(Enum):
    """`arc`: ARC tasks, a file or a folder; `jsonl`: one object per line; `text`: a folder of .txt files; `tokens`: an
    array of token ids, .npy or .safetensors; `dataset`: Hugging Face datasets, of the hub or of a local folder."""

    arc = "arc"
    jsonl = "jsonl"
    text = "text"
    tokens = "tokens"
    dataset = "dataset"


class OnBroken(Enum):
    """What happens at a task that cannot be used: refuse the run, or leave the task out and count it."""

    refuse = "refuse"
    skip = "skip"


class ArcPrompt(Enum):
    """`plain`: digits; `numbered`: with shapes and row numbers; `chat`: through the model's chat template."""

    plain = "plain"
    numbered = "numbered"
    chat = "chat"


class Augment(Enum):
    """How the forms of a task differ that several predictions see."""

    none = "none"
    geometry = "geometry"
    colours = "colours"
    both = "both"


@dataclass(kw_only=True)
class ArcConfig:
    prompt: ArcPrompt = ArcPrompt.plain
    predictions: int = 1  # per test input
    augment: Augment = Augment.both  # of every prediction but the first
    seed: int = 0  # of the augmentations

    def __post_init__(self) -> None:
        at_least("tasks.arc.predictions", self.predictions, 1)


@dataclass(kw_only=True)
class TasksConfig:
    format: TaskFormat = TaskFormat.arc
    path: str = MISSING  # a file or a folder; of format=dataset also a name on the hub
    limit: int | None = None  # at most so many samples, the first ones
    max_tokens: int | None = None  # at most so many tokens: the first samples that have no more in sum
    on_broken: OnBroken = OnBroken.refuse
    field: str = "text"  # of jsonl and dataset: holds the text, the chat messages or the token ids
    subset: str | None = None  # of dataset, and so are the next two
    split: str = "train"
    streaming: bool = False
    arc: ArcConfig = dataclasses.field(default_factory=ArcConfig)

    def __post_init__(self) -> None:
        for name in ("limit", "max_tokens"):
            value = getattr(self, name)
            if value is not None:
                at_least(f"tasks.{name}", value, 1)
        if self.streaming and self.format is not TaskFormat.dataset:
            raise JobError(f"tasks.streaming=true does not go with tasks.format={self.format.value}; only with dataset")
