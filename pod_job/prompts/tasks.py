"""A run's samples from a task source: in a fixed order, counted, fingerprinted, never more than asked for."""

import hashlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from pod_job.prompts.sources.sample import BrokenTask, Key, Reason, Sample, Source, check_tokens
from pod_job.prompts.sources.text_folder import text_source
from pod_job.prompts.sources.token_array import token_source
from pod_job.prompts.sources.watched import changed
from pod_job.terminal import one_line

SKIPPED_NAMED = 100
"""Most reasons that are recorded; beyond them skipped tasks are only counted."""


class Samples(Sequence[Sample]):
    """Samples that are loaded when they are asked for, from any thread; 16 to 32 bytes each are held.

    Each must be what it was when the source was read first: whoever asks for one that is not gets a JobError that names
    it. `contents` are their `content_hash`es.
    """

    def __init__(self, where: Int64[np.ndarray, "n K"], contents: Int64[np.ndarray, " n"], source: Source) -> None:
        self.where, self.contents, self.source = where, contents, source

    def __len__(self) -> int:
        return len(self.where)

    @overload
    def __getitem__(self, at: int) -> Sample: ...
    @overload
    def __getitem__(self, at: slice) -> "Samples": ...
    def __getitem__(self, at: int | slice) -> "Sample | Samples":
        if isinstance(at, slice):
            return Samples(self.where[at], self.contents[at], self.source)
        self.source.files.check()
        try:
            sample = self.source.load(tuple(self.where[at].tolist()))
        except BrokenTask as broken:
            raise JobError(changed(f"what was a sample ({broken})")) from broken
        if content_hash(sample) != self.contents[at]:
            raise JobError(changed(one_line(str(sample))))
        return sample


@dataclass(frozen=True)
class Tasks:
    """All samples of a run in their order.

    Attributes:
        fingerprint: changes when any of the samples does.
        skipped_by_reason: how many tasks were left out, by their Reason.
        messages: what was wrong with the first of those.
        text: some prompts are texts, which the tokenizer puts its begin token before.
        chat: some prompts need the model's chat template.
    """

    samples: Samples
    fingerprint: str
    skipped_by_reason: Mapping[str, int] = field(default_factory=dict)
    messages: tuple[str, ...] = ()
    text: bool = False
    chat: bool = False

    @property
    def skipped(self) -> int:
        return sum(self.skipped_by_reason.values())


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
            return dataset_source(config)


def read_tasks(config: TasksConfig, vocab: int = 2**31, count_tokens: Callable[[Sample], int] | None = None) -> Tasks:
    """Returns the first samples of the source, within `tasks.limit` and `tasks.max_tokens`; each is read once.

    Args:
        vocab: size of the model's vocabulary, which token ids must be in.
        count_tokens: tokens of a sample as the job computes it; needed with `tasks.max_tokens`.
    Raises:
        JobError: a source that is missing or empty, or a broken task under `tasks.on_broken=refuse`, named.
    """
    source, skipped = open_source(config), Skipped()
    taken, digest, names, contents = array("q"), hashlib.sha256(), array("q"), array("q")
    samples = tokens = 0
    text = chat = False
    for key, sample in usable(source, vocab, config.on_broken, skipped):
        if config.max_tokens is not None and count_tokens is not None:
            tokens += count_tokens(sample)
            if tokens > config.max_tokens:
                break
        samples += 1
        taken.extend(key)
        names.append(name_hash(sample))
        contents.append(content_hash(sample))
        digest.update(sample.content())
        text |= isinstance(sample.prompt, str)
        chat |= sample.is_chat
        if samples == config.limit:
            break
    if not samples:
        raise JobError(nothing_left(config, skipped, tokens))
    where = np.frombuffer(taken, np.int64).reshape(samples, -1)
    repeated = repeats(np.frombuffer(names, np.int64))
    for index in repeated:
        skipped.note(repeated_name(source.load(tuple(where[index].tolist())), config), config.on_broken)
    source.files.check()
    unique = Samples(np.delete(where, repeated, axis=0), np.delete(np.frombuffer(contents, np.int64), repeated), source)
    return Tasks(unique, digest.hexdigest(), skipped.counts, tuple(skipped.messages), text=text, chat=chat)


@dataclass
class Skipped:
    """Tasks left out so far: how many for each reason, and what was wrong with the first ones."""

    counts: Counter[str] = field(default_factory=Counter)
    messages: list[str] = field(default_factory=list)

    def note(self, broken: BrokenTask, on_broken: OnBroken) -> None:
        """Counts a task that is left out; under `on_broken=refuse` it is refused by JobError instead."""
        if on_broken is OnBroken.refuse:
            raise JobError(f"{broken}; fix it, or leave such tasks out with tasks.on_broken=skip") from broken
        self.counts[broken.reason.value] += 1
        if len(self.messages) < SKIPPED_NAMED:
            self.messages.append(str(broken))


def usable(source: Source, vocab: int, on_broken: OnBroken, skipped: Skipped) -> Iterator[tuple[Key, Sample]]:
    """Yields the source's samples; a broken one is refused by JobError, or left out and noted in `skipped`."""
    for key in source.scan():
        try:
            sample = source.load(key)
            check_tokens(sample, vocab)
        except BrokenTask as broken:
            source.files.check()  # a file that is being written is not a broken one
            skipped.note(broken, on_broken)
        else:
            yield key, sample


def name_hash(sample: Sample) -> int:
    """Returns 64 bits of task_id and sample_idx, the same in every process."""
    return _hash(f"{sample.sample_idx} {sample.task_id}".encode())


def content_hash(sample: Sample) -> int:
    """Returns 64 bits of all that a sample is, the same in every process."""
    return _hash(sample.content())


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big", signed=True)


def repeats(names: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " m"]:
    """Returns the indices, ascending, of the values that an earlier index has too."""
    order = np.argsort(names, kind="stable")
    again = np.diff(names[order]) == 0
    return np.sort(order[1:][again])


def repeated_name(sample: Sample, config: TasksConfig) -> BrokenTask:
    """Returns what is wrong with a sample of which an earlier one has the name."""
    return BrokenTask(
        f"tasks.path={config.path}: {sample} is there twice, so that rows could not be told apart: give each prompt of "
        "a task another sample_idx",
        Reason.repeated,
    )


def nothing_left(config: TasksConfig, skipped: Skipped, tokens: int) -> str:
    """Returns why a run has no sample."""
    if tokens:
        return f"tasks.max_tokens={config.max_tokens} is less than the {tokens} tokens of the first sample; raise it"
    if total := skipped.counts.total():
        return (
            f"tasks.path={config.path}: all {total} tasks are broken, the first: {skipped.messages[0]}; fix them, or "
            "use other tasks"
        )
    return f"tasks.path={config.path} is empty; there is no task in it"
