"""What a prompt was completed with: where a completion ends, its text, and the file that keeps those of a batch.

The file is written before anything else of its batch. A later attempt at the batch repeats the completions in it, so
that vectors which are there already belong to the tokens of whoever comes after.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pod_job.config.generate import GenerateConfig


@dataclass(frozen=True)
class Ending:
    """When a completion ends, and the tokenizer that tells its text."""

    generate: GenerateConfig
    end_tokens: tuple[int, ...]
    tokenizer: Any


def find_end(tokens: Sequence[int], ending: Ending) -> tuple[int, str] | None:
    """How many of the tokens make the completion, and why it ends there; None where it goes on after them."""
    most = ending.generate.max_new_tokens
    at = next((i for i, token in enumerate(tokens[:most]) if token in ending.end_tokens), None)
    count = min(len(tokens), most) if at is None else at + 1

    def stops(count: int) -> bool:
        text = ending.tokenizer.decode(tokens[:count], skip_special_tokens=True)
        return any(stop in text for stop in ending.generate.stop)

    if ending.generate.stop and stops(count):
        return next(n for n in range(1, count + 1) if stops(n)), "stop"
    if at is not None:
        return count, "end_token"
    return (count, "length") if count == most else None


def completed_text(tokens: Sequence[int], ending: Ending) -> str:
    """Text of the tokens up to the first stop text in it."""
    text = ending.tokenizer.decode(tokens, skip_special_tokens=True)
    return text[: min((text.find(stop) for stop in ending.generate.stop if stop in text), default=len(text))]
