"""`tasks.max_tokens` of a large source: its samples are tokenized once for it, by all hosts together."""

import hashlib
import logging
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from jaxtyping import Int64

from pod_job.config.tasks import TasksConfig
from pod_job.errors import JobError
from pod_job.formats.records import DAMAGED, Count, Record, decode, encode
from pod_job.planning.shared_work import Piece, Share, keep, kept, share_work
from pod_job.prompts.prompt import PromptRules
from pod_job.prompts.samples import AT_A_TIME, without_broken
from pod_job.prompts.scan import Skipped
from pod_job.prompts.sources.sample import BrokenTask, Sample
from pod_job.prompts.tasks import Tasks, nothing_left
from pod_job.prompts.tokenizer import Tokenizer
from pod_job.prompts.tokens import usable_prompts
from pod_job.run_folder.layout import budget_file, budget_part
from pod_job.storage.folder import Folder

PIECE = 4096
"""Samples that are tokenized for one part."""
PATIENCE_S = 60.0

log = logging.getLogger("pod_job")


@dataclass(frozen=True)
class TokenCounter:
    """Counts the tokens of samples that the job computes."""

    tokenizer: Tokenizer
    rules: PromptRules

    @property
    def key(self) -> str:
        """The rules that counts depend on, beside the samples and the tokenizer."""
        rules = self.rules
        return f"{rules.seq_len} {rules.too_long.value} {rules.extract.overlap} {rules.template_date}"

    def __call__(self, sample: Sample) -> int:
        return self.counts([sample])[0]

    def counts(self, loaded: Sequence[Sample | BrokenTask]) -> list[int]:
        """Returns the tokens of each; 0 for what cannot be used."""
        samples, _ = without_broken(loaded)
        tokens = Counter[int]()
        for prompt in usable_prompts(self.tokenizer, samples, self.rules).prompts:
            tokens[id(prompt.sample)] += len(prompt.token_ids)
        return [tokens[id(sample)] for sample in loaded]


class TokenBudget(Record, frozen=True):
    """Number of first samples that have at most `max_tokens` tokens together."""

    format: Literal[1]
    max_tokens: Count
    samples: Count


class TokenCounts(Record, frozen=True):
    """Tokens of each of some samples: compressed 32-bit numbers."""

    format: Literal[1]
    counts: bytes


def count_within_budget(tasks: Tasks, config: TasksConfig, counter: TokenCounter, folder: Folder, share: Share) -> int:
    """Returns how many of the first samples `tasks.max_tokens` has room for, as the run folder records it.

    Raises:
        JobError: there is no room for the first one; or a sample that cannot be used, where that is refused.
    """
    budget = config.max_tokens or 0
    key = hashlib.sha256(f"{tasks.fingerprint} {budget} {counter.key}".encode()).hexdigest()[:16]
    name = budget_file(key)
    if (data := kept(folder, name)) is not None:
        return decode(data, TokenBudget, f"{folder.url}/{name}").samples
    starts = range(0, len(tasks.samples), PIECE)
    pieces = [
        Piece(budget_part(key, number), partial(count_tokens, tasks, start, counter), PATIENCE_S)
        for number, start in enumerate(starts, start=1)
    ]
    log.info("counting tokens up to tasks.max_tokens=%d", budget)
    room = Room(budget)
    parts = share_work(folder, pieces, share, enough=room.exceeded_by)
    room.exceeded_by(parts)
    if not room.samples:
        first = int(decoded(parts, 0)[0])
        raise JobError(nothing_left(config, Skipped(), first))
    keep(folder, name, encode(TokenBudget(1, budget, room.samples)))
    return room.samples


def count_tokens(tasks: Tasks, start: int, counter: TokenCounter) -> bytes:
    """Returns the record of the tokens of PIECE samples from `start` on."""
    stop, counts = min(start + PIECE, len(tasks.samples)), []
    for first in range(start, stop, AT_A_TIME):
        counts += counter.counts(tasks.samples.load(range(first, min(first + AT_A_TIME, stop))))
    return encode(TokenCounts(1, zlib.compress(np.array(counts, "<u4").tobytes())))


def decoded(parts: Mapping[int, bytes], number: int) -> Int64[np.ndarray, " n"]:
    """Returns the counts of a part. JobError where it is damaged, or holds more than a part has."""
    name = f"part {number + 1} of the token counts of tasks.max_tokens"
    try:
        content = zlib.decompressobj().decompress(decode(parts[number], TokenCounts, name).counts, 4 * PIECE)
        return np.frombuffer(content, "<u4").astype(np.int64)
    except (zlib.error, ValueError) as error:
        raise JobError(f"{name}: {DAMAGED}") from error


class Room:
    """How many first samples a budget has room for, of the parts seen so far; each part is decoded once."""

    def __init__(self, budget: int) -> None:
        self.budget, self.samples = budget, 0
        self._parts = self._tokens = 0
        self._exceeded = False

    def exceeded_by(self, parts: Mapping[int, bytes]) -> bool:
        """Returns whether the first parts, as far as none is missing, have more tokens; `samples` is final then."""
        while not self._exceeded and self._parts in parts:
            sums = self._tokens + np.cumsum(decoded(parts, self._parts))
            inside = int(np.searchsorted(sums, self.budget, side="right"))
            self.samples += inside
            self._exceeded = inside < len(sums)
            self._tokens = int(sums[-1])
            self._parts += 1
        return self._exceeded
