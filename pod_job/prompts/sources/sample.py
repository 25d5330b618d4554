"""Sample, and Source: the keys of all samples in their order, and a function that loads one by its key."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Integer

Message = dict[str, str]
"""One turn of a chat: `role` and `content`."""

Key = tuple[int, ...]
"""Place of a sample in its source; of one length within a source."""

Prompt = str | list[Message] | Integer[np.ndarray, " length"]
"""Text, a chat that the model's template renders, or token ids that go to the model as they are."""


class BrokenTask(Exception):
    """Names a task that cannot be used, and why; `tasks.on_broken` decides what follows."""


@dataclass(frozen=True, eq=False)
class Sample:
    """One prompt. `sample_idx` counts the prompts of one task."""

    task_id: str
    sample_idx: int
    prompt: Prompt

    @property
    def is_chat(self) -> bool:
        return isinstance(self.prompt, list)

    def content(self) -> bytes:
        """Returns the sample as bytes, equal for equal samples."""
        prompt = self.prompt.tolist() if isinstance(self.prompt, np.ndarray) else self.prompt
        return json.dumps([self.task_id, self.sample_idx, prompt]).encode() + b"\n"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sample) and self.content() == other.content()

    def __hash__(self) -> int:
        return hash(self.content())


@dataclass(frozen=True)
class Source:
    """Source of samples: `scan()` yields every key once; `load(key)` returns one, from any thread.

    `load` raises BrokenTask. Only keys are held in memory, so a source may be larger than it.
    """

    scan: Callable[[], Iterator[Key]]
    load: Callable[[Key], Sample]


def read_prompt(where: str, value: Any) -> Prompt:
    """Returns the prompt that a JSON value holds: text, messages or token ids; BrokenTask otherwise."""
    match value:
        case str() if value:
            return value
        case [dict(), *_] if all(is_message(message) for message in value):
            return [{"role": message["role"], "content": message["content"]} for message in value]
        case [int(), *_] if all(type(token) is int and 0 <= token < 2**63 for token in value):
            return np.array(value)
    raise BrokenTask(f"{where} must be a non-empty text, a list of messages with role and content, or of token ids")


def check_tokens(sample: Sample, vocab: int) -> None:
    """Raises BrokenTask where the sample's token ids, if it has such, are not all within the model's vocabulary."""
    ids = sample.prompt
    if isinstance(ids, np.ndarray) and (wrong := ids[(ids < 0) | (ids >= vocab)]).size:
        raise BrokenTask(
            f"task {sample.task_id}, sample {sample.sample_idx} has the token id {wrong[0]}; "
            f"the model's are 0..{vocab - 1}"
        )


def is_message(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(key), str) for key in ("role", "content"))


def read_record(where: str, record: Any, field: str, task_id: str) -> Sample:
    """Returns a sample from an object with `field`, and `task_id` (else the one given) and `sample_idx` (else 0)."""
    if not isinstance(record, dict) or field not in record:
        raise BrokenTask(f'{where} must be an object with the field "{field}" (tasks.field)')
    number = record.get("sample_idx", 0)
    if type(number) is not int or not 0 <= number < 2**31:
        raise BrokenTask(f"{where}: sample_idx={number!r} is not a whole number from 0")
    return Sample(str(record.get("task_id", task_id)), number, read_prompt(f"{where}: {field}", record[field]))
