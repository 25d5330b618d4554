"""Sample, and Source: the keys of all samples in their order, and a function that loads one by its key."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
from jaxtyping import Integer

from pod_job.terminal import one_line

Message = Mapping[str, Any]
"""One turn of a chat: `role`, `content` (text, a list of parts, or null) and whatever else the template reads."""

Prompt = str | list[Message] | Integer[np.ndarray, " length"]
"""Text, a chat that the model's template renders, or token ids that go to the model as they are."""

TEMPLATE_FIELDS = ("tools", "documents")
"""Fields beside a chat that the template reads too."""
RECORD_FIELDS = ("task_id", "sample_idx", "attention_mask", *TEMPLATE_FIELDS)
"""Fields of a row that belong to its sample, beside `tasks.field`."""
LONGEST_ID = 1024
"""Characters of a task_id at most: the rows table repeats it for every row."""
LONGEST_TEXT = 64 << 20


class Reason(StrEnum):
    """Reason for which one prompt cannot be used, as counted in metadata.json."""

    broken = "broken"  # no sample at all: not JSON, a field missing, text that is no Unicode
    blank = "blank"  # no token but those that the tokenizer puts around every text
    repeated = "repeated"  # task_id and sample_idx of an earlier sample
    token_out_of_vocabulary = "token_out_of_vocabulary"
    too_long = "too_long"
    refused_by_template = "refused_by_template"
    refused_by_tokenizer = "refused_by_tokenizer"


class BrokenTask(Exception):
    """Names a task that cannot be used, and why, in one line; `tasks.on_broken` decides what follows.

    Attributes:
        tokens: of a task that is too long.
    """

    def __init__(self, message: str, reason: Reason = Reason.broken, tokens: int = 0) -> None:
        super().__init__(one_line(message))
        self.reason, self.tokens = reason, tokens

    def __reduce__(self) -> tuple:
        return BrokenTask, (str(self), self.reason, self.tokens)  # to other processes


@dataclass(frozen=True, eq=False)
class Sample:
    """One prompt. `sample_idx` counts the prompts of one task; `template_values` are the TEMPLATE_FIELDS of a chat."""

    task_id: str
    sample_idx: int
    prompt: Prompt
    template_values: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_chat(self) -> bool:
        return isinstance(self.prompt, list)

    def __str__(self) -> str:
        return f"task {self.task_id}, sample {self.sample_idx}"

    def content(self) -> bytes:
        """Returns the sample as bytes, equal for equal samples."""
        prompt: Any = self.prompt
        if isinstance(prompt, np.ndarray):
            prompt = prompt.tolist()
        elif isinstance(prompt, list):
            prompt = [in_order(message) for message in prompt]
        values = [dict(self.template_values)] if self.template_values else []
        return json.dumps([self.task_id, self.sample_idx, prompt, *values]).encode() + b"\n"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sample) and self.content() == other.content()

    def __hash__(self) -> int:
        return hash(self.content())


def in_order(message: Message) -> Message:
    """Returns a message of role and content with the role first: runs of 0.1.0 have their fingerprint of that."""
    return {key: message[key] for key in ("role", "content")} if message.keys() == {"role", "content"} else message


def checked(where: str, sample: Sample) -> Sample:
    """Returns the sample. BrokenTask, with `where` it is, for text that is no Unicode, values that are not JSON's, or
    a task_id or a text that is too long."""
    if len(sample.task_id) > LONGEST_ID:
        raise BrokenTask(f"{where}: task_id has {len(sample.task_id):,} characters; at most {LONGEST_ID:,} are stored")
    prompt = "" if isinstance(sample.prompt, np.ndarray) else sample.prompt
    try:
        if isinstance(prompt, str):
            if len(prompt) > LONGEST_TEXT:  # a tokenizer takes a hundred times the memory, and ends the process
                long = f"{len(prompt):,} characters; at most {LONGEST_TEXT:,} are tokenized: cut it into documents"
                raise BrokenTask(f"{where} has a text of {long}")
            (sample.task_id + prompt).encode()
        else:
            json.dumps([sample.task_id, prompt, dict(sample.template_values)], ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise BrokenTask(f"{where} has {half!r}, half of a surrogate pair, which is no character") from error
    except (TypeError, ValueError, RecursionError) as error:
        raise BrokenTask(f"{where} has a value that JSON cannot hold ({error})") from error
    return sample


def check_tokens(sample: Sample, vocab: int) -> None:
    """Raises BrokenTask where the sample's token ids, if it has such, are not all within the model's vocabulary."""
    ids = sample.prompt
    if isinstance(ids, np.ndarray) and (wrong := ids[(ids < 0) | (ids >= vocab)]).size:
        raise BrokenTask(
            f"{sample} has the token id {wrong[0]}; the model's are 0..{vocab - 1}", Reason.token_out_of_vocabulary
        )
