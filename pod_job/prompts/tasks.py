"""A run's samples from a task source: in a fixed order, counted, fingerprinted, never more than asked for."""

import hashlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import overload

import numpy as np
from jaxtyping import Int64

from pod_job.config.tasks import OnBroken, TaskFormat, TasksConfig
from pod_job.errors import JobError
from pod_job.prompts.sources.arc_source import arc_source
from pod_job.prompts.sources.hub_dataset import dataset_source
from pod_job.prompts.sources.jsonl import jsonl_source
from pod_job.prompts.sources.sample import BrokenTask, Key, Sample, Source, check_tokens
from pod_job.prompts.sources.text_folder import text_source
from pod_job.prompts.sources.token_array import token_source

SKIPPED_NAMED = 100
"""Most reasons that are recorded; beyond them skipped tasks are only counted."""


class Samples(Sequence[Sample]):
    """Samples that are loaded when they are asked for, from any thread; 8 to 24 bytes each are held."""

    def __init__(self, where: Int64[np.ndarray, "n K"], load: Callable[[Key], Sample]) -> None:
        self.where, self.load = where, load

    def __len__(self) -> int:
        return len(self.where)

    @overload
    def __getitem__(self, at: int) -> Sample: ...
    @overload
    def __getitem__(self, at: slice) -> "Samples": ...
    def __getitem__(self, at: int | slice) -> "Sample | Samples":
        if isinstance(at, slice):
            return Samples(self.where[at], self.load)
        return self.load(tuple(self.where[at].tolist()))


@dataclass(frozen=True)
class Tasks:
    """All samples of a run in their order.

    `fingerprint` changes when any of them does; `skipped` tasks were broken and left out, `reasons` names the first of
    them; `chat`: some prompts need the model's chat template.
    """

    samples: Samples
    fingerprint: str
    skipped: int = 0
    reasons: tuple[str, ...] = ()
    chat: bool = False


def open_source(config: TasksConfig) -> Source:
    """Opens the source that `tasks.format` names; JobError where it cannot be opened."""
    path = Path(config.path)
    match config.format:
        case TaskFormat.arc:
            return arc_source(path, config.arc)
        case TaskFormat.jsonl:
            return jsonl_source(path, config.field)
        case TaskFormat.text:
            return text_source(path)
        case TaskFormat.tokens:
            return token_source(path)
        case TaskFormat.dataset:
            return dataset_source(config.path, config.subset, config.split, config.streaming, config.field)


def read_tasks(config: TasksConfig, vocab: int = 2**31, count_tokens: Callable[[Sample], int] | None = None) -> Tasks:
    """Returns the first samples of the source, within `tasks.limit` and `tasks.max_tokens`; each is read once.

    Args:
        vocab: size of the model's vocabulary, which token ids must be in.
        count_tokens: tokens of a sample as the job computes it; needed with `tasks.max_tokens`.
    Raises:
        JobError: a source that is missing or empty, or a broken task under `tasks.on_broken=refuse`, named.
    """
    source, skipped = open_source(config), Skipped()
    taken, digest = array("q"), hashlib.sha256()
    samples = tokens = 0
    chat = False
    for key, sample in usable(source, vocab, config.on_broken, skipped):
        if config.max_tokens is not None and count_tokens is not None:
            tokens += count_tokens(sample)
            if tokens > config.max_tokens:
                break
        samples += 1
        taken.extend(key)
        digest.update(sample.content())
        chat |= sample.is_chat
        if samples == config.limit:
            break
    if not samples:
        raise JobError(nothing_left(config, skipped.count, tokens))
    where = np.frombuffer(taken, np.int64).reshape(samples, -1)
    return Tasks(Samples(where, source.load), digest.hexdigest(), skipped.count, tuple(skipped.reasons), chat)


@dataclass
class Skipped:
    """Count of the broken tasks that were left out so far, and the reasons of the first ones."""

    count: int = 0
    reasons: list[str] = field(default_factory=list)


def usable(source: Source, vocab: int, on_broken: OnBroken, skipped: Skipped) -> Iterator[tuple[Key, Sample]]:
    """Yields the source's samples; a broken one is refused by JobError, or left out and noted in `skipped`."""
    for key in source.scan():
        try:
            sample = source.load(key)
            check_tokens(sample, vocab)
            yield key, sample
        except BrokenTask as broken:
            if on_broken is OnBroken.refuse:
                raise JobError(f"{broken}; fix it, or leave such tasks out with tasks.on_broken=skip") from broken
            skipped.count += 1
            if len(skipped.reasons) < SKIPPED_NAMED:
                skipped.reasons.append(str(broken))


def nothing_left(config: TasksConfig, skipped: int, tokens: int) -> str:
    """Returns why a run has no sample."""
    if tokens:
        return f"tasks.max_tokens={config.max_tokens} is less than the {tokens} tokens of the first sample; raise it"
    if skipped:
        return f"tasks.path={config.path}: all {skipped} tasks are broken; tasks.on_broken=refuse names the first"
    return f"tasks.path={config.path} is empty; there is no task in it"
