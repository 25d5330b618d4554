"""A run's samples: in a fixed order, counted, fingerprinted, never more than asked for.

A small source is read and checked whole at every start, and what is broken in it is left out before batches are cut.
Of a larger one there is an index: its documents are read when their batch is, and one that is broken has its place in
the batch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pod_job.config.tasks import TaskFormat, TasksConfig
from pod_job.errors import JobError
from pod_job.prompts.samples import AT_A_TIME, EstimatedSamples, SampleRules, Samples
from pod_job.prompts.scan import Scan, Skipped, repeated_name, repeats, usable
from pod_job.prompts.sources.arc_source import ArcDocuments
from pod_job.prompts.sources.documents import Documents, Read, count_source, make_reader, sequential_sizes
from pod_job.prompts.sources.estimate import Estimate
from pod_job.prompts.sources.index import TaskIndex
from pod_job.prompts.sources.listing import Listing, list_source
from pod_job.prompts.sources.order import Order, OrderRules
from pod_job.prompts.sources.sample import Sample

WHOLE_ROWS = 1 << 20
"""Rows of Parquet files up to which a source can be read whole at every start: that takes half a minute."""
SEEN = 32
"""Samples of an indexed source that tell which kinds of prompts it has."""
TOKENIZED = 256
"""Samples whose tokens are counted for an estimate."""

CountTokens = Callable[[Sample], int]


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
        sequential: sizes of the files that can only be read from their start, where hosts share the source.
    """

    samples: Samples
    fingerprint: str
    format: TaskFormat = TaskFormat.auto
    skipped_by_reason: Mapping[str, int] = field(default_factory=dict)
    messages: tuple[str, ...] = ()
    text: bool = False
    chat: bool = False
    whole: bool = True
    sequential: tuple[int, ...] = ()

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
    if is_read_whole(listing, config):
        return whole_tasks(listing, config, vocab, count_tokens)
    index = count_source(listing, config)
    tasks = indexed_tasks(index, config, vocab)
    return tasks if count_tokens is None else within_tokens(tasks, tasks_in_budget(tasks, config, count_tokens))


def is_read_whole(listing: Listing, config: TasksConfig) -> bool:
    """Returns whether a source has no index: it is small, of Parquet in rows too, of which few bytes can hold many.

    Raises:
        JobError: a Parquet file that cannot be read.
    """
    if listing.kind != "parquet" or not listing.small:
        return listing.small or listing.kind == "arc"
    readers = (make_reader(listing.kind, entry, config, alone=len(listing.files) == 1) for entry in listing.files)
    return sum(reader.rows_at_a_glance() for reader in readers) <= WHOLE_ROWS


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


def indexed_tasks(index: TaskIndex, config: TasksConfig, vocab: int) -> Tasks:
    """Returns the samples of an indexed source, which are read later. JobError for an empty source."""
    documents = Documents(index, config)
    order = make_order(documents, config)
    count = min(order.samples, config.limit or order.samples)
    if not count:
        raise JobError(nothing_left(config, Skipped(), 0))
    samples = Samples(documents, order, count, rules=SampleRules(vocab, config.on_broken))
    rules: dict[str, object] = {
        "field": config.field,
        "parts": [[part.name, part.start, part.stop] for part in index.parts],
        "sample": config.sample,
        "shuffle": config.shuffle,
        "dtype": config.dtype,
        "row_tokens": config.row_tokens,
    }
    seen = samples.documents.load(order.rows(np.arange(min(SEEN, count))))
    fingerprint, format = index.fingerprint(rules), format_of(Listing(index.kind, []), config)
    return Tasks(
        samples,
        fingerprint,
        format,
        text=has_text(seen),
        chat=has_chat(seen),
        whole=False,
        sequential=sequential_sizes(index.kind, index.files),
    )


def estimated_tasks(
    listing: Listing, config: TasksConfig, estimated: Estimate, count_tokens: CountTokens | None, vocab: int = 2**31
) -> Tasks:
    """Returns about how many samples a source has that nobody has counted yet, and some of them."""
    drawn = [sample for sample in estimated.drawn[:TOKENIZED] if isinstance(sample, Sample)]
    count = max(1, round(estimated.samples * (config.sample or 1)))
    error = estimated.error
    if config.max_tokens is not None and count_tokens is not None and drawn:
        mean = sum(map(count_tokens, drawn)) / len(drawn)
        within = max(1, round(config.max_tokens / max(1.0, mean)))
        count, error = min(count, within), error if count < within else max(error, 1 / len(drawn) ** 0.5)
    if config.limit is not None and config.limit <= count:
        count, error = config.limit, error if estimated.samples * (1 - error) < config.limit else 0.0
    samples = EstimatedSamples(estimated.drawn, count, error, SampleRules(vocab, config.on_broken))
    format = format_of(listing, config)
    return Tasks(
        samples,
        "",
        format,
        text=has_text(estimated.drawn),
        chat=has_chat(estimated.drawn),
        whole=False,
        sequential=() if estimated.members else sequential_sizes(listing.kind, listing.files),
    )


def has_text(samples: Sequence[Read]) -> bool:
    return any(isinstance(sample, Sample) and isinstance(sample.prompt, str) for sample in samples)


def has_chat(samples: Sequence[Read]) -> bool:
    return any(isinstance(sample, Sample) and sample.is_chat for sample in samples)


def format_of(listing: Listing, config: TasksConfig) -> TaskFormat:
    return listing.format if config.format is TaskFormat.auto else config.format


def open_documents(listing: Listing, config: TasksConfig) -> Documents:
    """Returns the documents of a source, counted here."""
    if listing.kind == "arc":
        return ArcDocuments(listing, config)
    return Documents(count_source(listing, config), config)


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
