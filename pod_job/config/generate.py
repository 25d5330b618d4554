"""Generation of tokens: the fields `mode` and `generate.*` of the configuration, and the sizes that follow."""

from dataclasses import dataclass, field
from enum import Enum

from pod_job.errors import JobError, at_least


class Mode(Enum):
    """`prefill`: one forward pass over each prompt; `generate`: the same, then new tokens one by one; `train`: SAEs on
    the vectors of a forward pass, or of a finished run."""

    prefill = "prefill"
    generate = "generate"
    train = "train"


@dataclass(kw_only=True)
class GenerateConfig:
    max_new_tokens: int = 256  # most new tokens per prompt
    temperature: float = 0.0  # 0: the most likely token; 1: sampled from the model's probabilities
    seed: int = 0  # seed of the samples at a temperature above 0
    stop: list[str] = field(default_factory=list)  # texts that end a completion
    share_prefix: bool = True  # tokens that all prompts begin with are computed once, where they are half

    def __post_init__(self) -> None:
        at_least("generate.max_new_tokens", self.max_new_tokens, 1)
        if not 0 <= self.temperature < float("inf"):
            raise JobError(f"generate.temperature={self.temperature} is not a temperature; use 0 (greedy) or more")
        if not 0 <= self.seed < 2**32:
            raise JobError(f"generate.seed={self.seed} is out of range; use 0..{2**32 - 1}")
        if "" in self.stop:
            raise JobError("generate.stop has an empty text, which every completion begins with; remove it")


CALL_TOKENS = 16
SLOTS_TOGETHER = 128
"""A TPU's memory has slots in groups of so many, and pads others."""
PREFILL_POSITIONS = 1024
"""Positions that a device reads in one prefill where rows are that short: enough to keep a TPU's matrix units busy."""
PREFILL_PROMPTS = 16
"""Most prompts of a device in one prefill; each costs a copy of a row of the cache."""


def call_tokens(max_new_tokens: int) -> int:
    """Returns the number of tokens that one call of decode adds."""
    return min(CALL_TOKENS, max_new_tokens)


def cache_slots(seq_len: int, max_new_tokens: int) -> int:
    """Returns the cache slots of a row: the longest prompt, and whole calls of decode, in whole vector registers."""
    T = call_tokens(max_new_tokens)
    slots = seq_len + -(-max_new_tokens // T) * T
    return -(-slots // SLOTS_TOGETHER) * SLOTS_TOGETHER


def prefix_slots(tokens: int) -> int:
    """Returns the slots of a shared prefix of so many tokens, in whole vector registers."""
    return -(-tokens // SLOTS_TOGETHER) * SLOTS_TOGETHER


def prefill_length(rows_per_device: int, seq_len: int) -> int:
    """Returns the positions of the row that prefill reads on each device, into which prompts are packed."""
    return seq_len * max(1, min(rows_per_device, PREFILL_POSITIONS // seq_len))


def prefill_prompts(rows_per_device: int, seq_len: int, prompts_per_row: int) -> int:
    """Returns how many prompts are packed at most into that row."""
    packed = prompts_per_row * prefill_length(rows_per_device, seq_len) // seq_len
    return min(packed, rows_per_device, PREFILL_PROMPTS)
