"""A run's samples: in a fixed order, counted, fingerprinted, never more than asked for.

A small source is read and checked whole at every start, and what is broken in it is left out before batches are cut.
Of a larger one there is an index: its documents are read when their batch is, and one that is broken has its place in
the batch.
"""

import hashlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import overload

import numpy as np
from jaxtyping import Int64

from pod_job.config.tasks import OnBroken, TaskFormat, TasksConfig
from pod_job.errors import JobError
from pod_job.prompts.sources.arc_source import ArcDocuments
from pod_job.prompts.sources.blocks import changed
from pod_job.prompts.sources.documents import Documents, Read, count_source
from pod_job.prompts.sources.index import TaskIndex
from pod_job.prompts.sources.listing import Listing, list_source
from pod_job.prompts.sources.order import Order, OrderRules
from pod_job.prompts.sources.sample import BrokenTask, Reason, Sample, check_tokens
from pod_job.terminal import one_line

SKIPPED_NAMED = 100
"""Most reasons that are recorded; beyond them skipped tasks are only counted."""
AT_A_TIME = 256
"""Samples that are read together."""
SEEN = 32
"""Samples of an indexed source that tell which kinds of prompts it has."""

CountTokens = Callable[[Sample], int]


class Samples(Sequence[Sample]):
    """Samples that are loaded when they are asked for, from any thread.

    `rows` are their rows in the documents, or the order that gives them. `contents`: their `content_hash`es, where
    they were read before: whoever asks for one that is another now gets a JobError that names it.
    """

    def __init__(
        self,
        documents: Documents,
        rows: Int64[np.ndarray, " n"] | Order,
        count: int,
        contents: Int64[np.ndarray, " n"] | None = None,
        rules: "SampleRules | None" = None,
    ) -> None:
        self.documents, self.rows, self.total, self.contents = documents, rows, count, contents
        self.rules = rules or SampleRules()

    def __len__(self) -> int:
        return self.total

    @overload
    def __getitem__(self, at: int) -> Sample: ...
    @overload
    def __getitem__(self, at: slice) -> list[Sample]: ...
    def __getitem__(self, at: int | slice) -> Sample | list[Sample]:
        if isinstance(at, slice):
            return [sample for sample in self.load(range(self.total)[at]) if isinstance(sample, Sample)]
        [sample] = self.load([range(self.total)[at]])
        if isinstance(sample, BrokenTask):
            raise JobError(str(sample))
        return sample

    def __iter__(self) -> Iterator[Sample]:
        for start in range(0, self.total, AT_A_TIME):
            yield from self[start : start + AT_A_TIME]

    def load(self, indices: Sequence[int]) -> list[Read]:
        """Returns the samples at these indices, or for a broken one what is wrong with it.

        Raises:
            JobError: a file was changed or cannot be read; under `tasks.on_broken=refuse`, a broken sample.
        """
        chosen = np.asarray(indices, np.int64)
        rows = self.rows.rows(chosen) if isinstance(self.rows, Order) else self.rows[chosen]
        loaded = self.documents.load(rows)
        if self.contents is not None:
            for sample, content in zip(loaded, self.contents[chosen].tolist(), strict=True):
                if isinstance(sample, BrokenTask):
                    raise JobError(changed_text(f"what was a sample ({sample})"))
                if content_hash(sample) != content:
                    raise JobError(changed_text(one_line(str(sample))))
            return loaded
        return self.rules.checked(loaded)


def changed_text(what: str) -> str:
    return str(changed(what))


@dataclass(frozen=True)
class SampleRules:
    """Rules by which a document of an indexed source is a sample, or broken."""

    vocab: int = 2**31
    on_broken: OnBroken = OnBroken.refuse

    def checked(self, loaded: Sequence[Read]) -> list[Read]:
        """Returns the documents with what is wrong in place of those that are none; JobError where that is refused."""
        results: list[Read] = []
        names: set[tuple[str, int]] = set()
        for document in loaded:
            result = self._checked(document, names)
            if isinstance(result, BrokenTask):
                refuse(result, self.on_broken)
            results.append(result)
        return results

    def _checked(self, document: Read, names: set[tuple[str, int]]) -> Read:
        if isinstance(document, BrokenTask):
            return document
        name = document.task_id, document.sample_idx
        if name in names:
            return BrokenTask(f"{document} is twice in one batch; give each prompt another sample_idx", Reason.repeated)
        names.add(name)
        try:
            check_tokens(document, self.vocab)
        except BrokenTask as broken:
            return broken
        return document


def refuse(broken: BrokenTask, on_broken: OnBroken) -> None:
    """Raises JobError under `on_broken=refuse`."""
    if on_broken is OnBroken.refuse:
        raise JobError(f"{broken}; fix it, or leave such tasks out with tasks.on_broken=skip") from broken


@dataclass(frozen=True)
class Tasks:
    """All samples of a run in their order.

    Attributes:
        fingerprint: changes when any of the samples does.
        format: the format they were read as.
        skipped_by_reason: how many tasks were left out before batches were cut, by their Reason.
        messages: what was wrong with the first of those.
        text: some prompts are texts, which the tokenizer puts its begin token before.
        chat: some prompts need the model's chat template.
        whole: all samples were read, so that nothing else can be in them.
    """

    samples: Samples
    fingerprint: str
    format: TaskFormat = TaskFormat.auto
    skipped_by_reason: Mapping[str, int] = field(default_factory=dict)
    messages: tuple[str, ...] = ()
    text: bool = False
    chat: bool = False
    whole: bool = True

    @property
    def skipped(self) -> int:
        return sum(self.skipped_by_reason.values())


def read_tasks(config: TasksConfig, vocab: int = 2**31, count_tokens: CountTokens | None = None) -> Tasks:
    """Returns the first samples of the source, within `tasks.limit` and `tasks.max_tokens`.

    A source without an index is counted here, one that is small read whole.

    Args:
        vocab: size of the model's vocabulary, which token ids must be in.
        count_tokens: tokens of a sample as the job computes it; needed with `tasks.max_tokens`.
    Raises:
        JobError: a source that is missing or empty, or a broken task under `tasks.on_broken=refuse`, named.
    """
    listing = list_source(config)
    if listing.small or listing.kind == "arc":
        return whole_tasks(listing, config, vocab, count_tokens)
    index = count_source(listing, config)
    tasks = indexed_tasks(index, listing, config, vocab)
    return tasks if count_tokens is None else within_tokens(tasks, tasks_in_budget(tasks, config, count_tokens))


def whole_tasks(listing: Listing, config: TasksConfig, vocab: int, count_tokens: CountTokens | None = None) -> Tasks:
    """Returns the samples of a source that is read whole. JobError as `read_tasks`."""
    documents = open_documents(listing, config)
    order = make_order(documents, config)
    skipped, scan = Skipped(), Scan()
    for row, sample in usable(documents, order, vocab, skipped, config.on_broken):
        if config.max_tokens is not None and count_tokens is not None:
            scan.tokens += count_tokens(sample)
            if scan.tokens > config.max_tokens:
                break
        scan.add(row, sample)
        if len(scan.rows) == config.limit:
            break
    if not scan.rows:
        raise JobError(nothing_left(config, skipped, scan.tokens))
    rows, names, contents = (np.frombuffer(values, np.int64) for values in (scan.rows, scan.names, scan.contents))
    repeated = repeats(names)
    for index in repeated:
        [sample] = documents.load(rows[index : index + 1])
        skipped.note(repeated_name(str(sample), config), config.on_broken)
    documents.check_all()
    documents.forget()
    rows, contents = np.delete(rows, repeated), np.delete(contents, repeated)
    return Tasks(
        Samples(documents, rows, len(rows), contents),
        scan.digest.hexdigest(),
        format_of(listing, config),
        skipped.counts,
        tuple(skipped.messages),
        text=scan.text,
        chat=scan.chat,
    )


def indexed_tasks(index: TaskIndex, listing: Listing, config: TasksConfig, vocab: int) -> Tasks:
    """Returns the samples of an indexed source, which are read later. JobError for an empty source."""
    documents = Documents(index, listing.parts, config)
    order = make_order(documents, config)
    count = min(order.samples, config.limit or order.samples)
    if not count:
        raise JobError(nothing_left(config, Skipped(), 0))
    samples = Samples(documents, order, count, rules=SampleRules(vocab, config.on_broken))
    rules: dict[str, object] = {
        "field": config.field,
        "parts": [[part.name, part.start, part.stop] for part in listing.parts],
        "sample": config.sample,
        "shuffle": config.shuffle,
        "dtype": config.dtype,
        "row_tokens": config.row_tokens,
    }
    seen = samples.documents.load(order.rows(np.arange(min(SEEN, count))))
    return Tasks(
        samples,
        index.fingerprint(rules),
        format_of(listing, config),
        text=any(isinstance(sample, Sample) and isinstance(sample.prompt, str) for sample in seen),
        chat=any(isinstance(sample, Sample) and sample.is_chat for sample in seen),
        whole=False,
    )


def format_of(listing: Listing, config: TasksConfig) -> TaskFormat:
    return listing.format if config.format is TaskFormat.auto else config.format


def open_documents(listing: Listing, config: TasksConfig) -> Documents:
    """Returns the documents of a source, counted here."""
    if listing.kind == "arc":
        return ArcDocuments(listing, config)
    return Documents(count_source(listing, config), listing.parts, config)


def make_order(documents: Documents, config: TasksConfig) -> Order:
    """Returns the order of the samples that the configuration asks for."""
    rows = len(documents)
    rules = OrderRules(
        rows=rows,
        file_starts=tuple(documents.starts[:-1].tolist()),
        row_bytes=documents.index.bytes / max(1, rows),
        sample=config.sample,
        shuffle=config.shuffle,
        whole_files=config.shuffle is not None and documents.sequential,
    )
    return Order(rules)


def tasks_in_budget(tasks: Tasks, config: TasksConfig, count_tokens: CountTokens) -> int:
    """Returns how many samples `tasks.max_tokens` has room for."""
    tokens = 0
    for start in range(0, len(tasks.samples), AT_A_TIME):
        numbers = range(start, min(start + AT_A_TIME, len(tasks.samples)))
        for number, sample in zip(numbers, tasks.samples.load(numbers), strict=True):
            tokens += count_tokens(sample) if isinstance(sample, Sample) else 0
            if config.max_tokens is not None and tokens > config.max_tokens:
                if number == 0:
                    raise JobError(nothing_left(config, Skipped(), tokens))
                return number
    return len(tasks.samples)


def within_tokens(tasks: Tasks, count: int) -> Tasks:
    """Returns the first `count` samples of them."""
    samples = tasks.samples
    shorter = Samples(samples.documents, samples.rows, count, samples.contents, samples.rules)
    return Tasks(**{**vars(tasks), "samples": shorter})


@dataclass
class Scan:
    """Findings of reading a source whole: the rows that are samples, their names and contents, and kinds of prompts."""

    rows: array = field(default_factory=lambda: array("q"))
    names: array = field(default_factory=lambda: array("q"))
    contents: array = field(default_factory=lambda: array("q"))
    digest: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    tokens: int = 0
    text: bool = False
    chat: bool = False

    def add(self, row: int, sample: Sample) -> None:
        self.rows.append(row)
        self.names.append(name_hash(sample))
        self.contents.append(content_hash(sample))
        self.digest.update(sample.content())
        self.text |= isinstance(sample.prompt, str)
        self.chat |= sample.is_chat


@dataclass
class Skipped:
    """Tasks left out so far: how many for each reason, and what was wrong with the first ones."""

    counts: Counter[str] = field(default_factory=Counter)
    messages: list[str] = field(default_factory=list)

    def note(self, broken: BrokenTask, on_broken: OnBroken) -> None:
        """Counts a task that is left out; under `on_broken=refuse` it is refused by JobError instead."""
        refuse(broken, on_broken)
        self.counts[broken.reason.value] += 1
        if len(self.messages) < SKIPPED_NAMED:
            self.messages.append(str(broken))


def usable(
    documents: Documents, order: Order, vocab: int, skipped: Skipped, on_broken: OnBroken
) -> Iterator[tuple[int, Sample]]:
    """Yields the samples and their rows; a broken one is refused by JobError, or left out and noted in `skipped`."""
    for start in range(0, order.samples, AT_A_TIME):
        rows = order.rows(np.arange(start, min(start + AT_A_TIME, order.samples)))
        for row, sample in zip(rows.tolist(), documents.load(rows), strict=True):
            try:
                if isinstance(sample, BrokenTask):
                    raise sample
                check_tokens(sample, vocab)
            except BrokenTask as broken:
                skipped.note(broken, on_broken)
            else:
                yield row, sample


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


def repeated_name(sample: str, config: TasksConfig) -> BrokenTask:
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
