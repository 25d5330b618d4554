"""A task source read whole: its samples, and what is broken or repeated in it."""

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int64

from pod_job.config.tasks import OnBroken, TasksConfig
from pod_job.prompts.samples import AT_A_TIME, content_hash, name_hash, refuse
from pod_job.prompts.sources.documents import Documents
from pod_job.prompts.sources.order import Order
from pod_job.prompts.sources.sample import BrokenTask, Reason, Sample, check_tokens

SKIPPED_NAMED = 100
"""Most reasons that are recorded; beyond them skipped tasks are only counted."""


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
