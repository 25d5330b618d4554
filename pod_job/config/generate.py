"""How tokens are generated: the fields `mode` and `generate.*` of the configuration, and the sizes that follow."""

from dataclasses import dataclass, field
from enum import Enum

from pod_job.errors import JobError, at_least


class Mode(Enum):
    """`prefill`: one forward pass over each prompt; `generate`: then new tokens, one by one."""

    prefill = "prefill"
    generate = "generate"


@dataclass(kw_only=True)
class GenerateConfig:
    max_new_tokens: int = 256
    temperature: float = 0.0  # 0: the likeliest token; 1: as the model's probabilities are
    seed: int = 0  # of draws at a temperature above 0
    stop: list[str] = field(default_factory=list)  # a completion ends with the first of these texts in it

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
    """Tokens that one call of decode adds."""
    return min(CALL_TOKENS, max_new_tokens)


def cache_slots(seq_len: int, max_new_tokens: int) -> int:
    """Slots of a row: the longest prompt, and whole calls of decode."""
    T = call_tokens(max_new_tokens)
    return seq_len + -(-max_new_tokens // T) * T
