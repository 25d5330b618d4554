"""Completions: where one ends, and its text."""

from collections.abc import Sequence
from dataclasses import dataclass

from pod_job.config.generate import GenerateConfig
from pod_job.prompts.tokenizer import Tokenizer


@dataclass(frozen=True)
class Ending:
    """When a completion ends, and the tokenizer that gives its text; None in programs that are only compiled."""

    generate: GenerateConfig
    end_tokens: tuple[int, ...]
    tokenizer: Tokenizer | None

    def text(self, tokens: Sequence[int]) -> str:
        """Returns the text of the tokens, without special ones."""
        assert self.tokenizer is not None
        return self.tokenizer.decode(tokens, skip_special_tokens=True)


def find_end(tokens: Sequence[int], ending: Ending) -> tuple[int, str] | None:
    """Returns how many of the tokens make the completion, and why it ends there; None where it goes on after them."""
    most = ending.generate.max_new_tokens
    at = next((i for i, token in enumerate(tokens[:most]) if token in ending.end_tokens), None)
    count = min(len(tokens), most) if at is None else at + 1

    def stops(count: int) -> bool:
        text = ending.text(tokens[:count])
        return any(stop in text for stop in ending.generate.stop)

    if ending.generate.stop and stops(count):
        return next(n for n in range(1, count + 1) if stops(n)), "stop"
    if at is not None:
        return count, "end_token"
    return (count, "length") if count == most else None


def completed_text(tokens: Sequence[int], ending: Ending) -> str:
    """Returns the text of the tokens up to the first stop text in it."""
    text = ending.text(tokens)
    return text[: min((text.find(stop) for stop in ending.generate.stop if stop in text), default=len(text))]
