"""Generation of tokens: the fields `mode` and `generate.*` of the configuration, and the sizes that follow."""

from dataclasses import dataclass, field
from enum import Enum

from pod_job.errors import JobError, at_least


class Mode(Enum):
    """`prefill`: one forward pass over each prompt; `generate`: the same, then new tokens one by one."""

    prefill = "prefill"
    generate = "generate"


@dataclass(kw_only=True)
class GenerateConfig:
    max_new_tokens: int = 256  # most new tokens per prompt
    temperature: float = 0.0  # 0: the most likely token; 1: sampled from the model's probabilities
    seed: int = 0  # seed of the samples at a temperature above 0
    stop: list[str] = field(default_factory=list)  # texts that end a completion

    def __post_init__(self) -> None:
        at_least("generate.max_new_tokens", self.max_new_tokens, 1)
        if not 0 <= self.temperature < float("inf"):
            raise JobError(f"generate.temperature={self.temperature} is not a temperature; use 0 (greedy) or more")
        if not 0 <= self.seed < 2**32:
            raise JobError(f"generate.seed={self.seed} is out of range; use 0..{2**32 - 1}")
        if "" in self.stop:
            raise JobError("generate.stop has an empty text, which every completion begins with; remove it")


CALL_TOKENS = 16


def call_tokens(max_new_tokens: int) -> int:
    """Returns the number of tokens that one call of decode adds."""
    return min(CALL_TOKENS, max_new_tokens)


def cache_slots(seq_len: int, max_new_tokens: int) -> int:
    """Returns the cache slots of a row: the longest prompt, and whole calls of decode."""
    T = call_tokens(max_new_tokens)
    return seq_len + -(-max_new_tokens // T) * T
