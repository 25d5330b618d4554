"""Samples of a run, loaded when they are asked for, and a look at some of them."""

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from jaxtyping import Int64

from pod_job.config.tasks import OnBroken
from pod_job.errors import JobError
from pod_job.prompts.sources.blocks import changed
from pod_job.prompts.sources.documents import Documents, Read
from pod_job.prompts.sources.order import Order
from pod_job.prompts.sources.sample import BrokenTask, Reason, Sample, check_tokens
from pod_job.terminal import one_line

AT_A_TIME = 256
"""Samples that are read together."""
ALL_UP_TO = 1000
"""Samples that a look takes all of; of more, the first, the last and random ones."""
ENDS = 100
"""First and last samples that a look takes, of many."""
PLACES, NEIGHBORS = 16, 62
"""Places of a large source that a look takes samples from, and how many from each."""


class Samples:
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

    @property
    def error(self) -> float:
        """The part of the number of samples by which it may be wrong, with 95% certainty; 0: it was counted."""
        return 0.0

    def survey(self, seed: int = 0) -> list[Read]:
        """Returns samples from all over the run: all of them where they are few. JobError as `load`."""
        if self.contents is not None or len(self) <= ALL_UP_TO:
            return self.load(sample_indices(len(self), seed))
        assert isinstance(self.rows, Order)
        last = len(self.documents) - 1
        if self.rows.rules.shuffle is None:
            last = int(self.rows.rows(np.array([len(self) - 1]))[0])
        return self.rules.checked(self.documents.load(places(self.documents, last + 1, seed)), of_a_batch=False)

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
                    raise changed(f"what was a sample ({sample})")
                if content_hash(sample) != content:
                    raise changed(one_line(str(sample)))
            return loaded
        return self.rules.checked(loaded)


@dataclass(frozen=True)
class SampleRules:
    """Rules by which a document of an indexed source is a sample, or broken."""

    vocab: int = 2**31
    on_broken: OnBroken = OnBroken.refuse

    def checked(self, loaded: Sequence[Read], of_a_batch: bool = True) -> list[Read]:
        """Returns the documents with what is wrong in place of those that are none; JobError where that is refused.

        Args:
            of_a_batch: they are stored together, so that no two may have one name.
        """
        results: list[Read] = []
        names: set[tuple[str, int]] = set()
        for document in loaded:
            result = self._checked(document, names if of_a_batch else set())
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


def without_broken(loaded: Sequence[Read]) -> tuple[list[Sample], list[BrokenTask]]:
    """Returns the samples among what was loaded, and what is wrong with the others."""
    samples = [sample for sample in loaded if isinstance(sample, Sample)]
    return samples, [broken for broken in loaded if isinstance(broken, BrokenTask)]


class EstimatedSamples(Samples):
    """Samples of a large source that nobody has counted yet: about how many there are, and some of them."""

    def __init__(self, drawn: Sequence[Read], count: int, error: float, rules: SampleRules) -> None:
        self.drawn, self.total, self.rules, self._error = drawn, count, rules, error
        self.contents = None

    @property
    def error(self) -> float:
        return self._error

    def survey(self, seed: int = 0) -> list[Read]:
        return self.rules.checked(self.drawn, of_a_batch=False)

    def load(self, indices: Sequence[int]) -> list[Read]:
        """Returns the first documents of the source, or others in place of those that nobody has looked for."""
        drawn = [self.drawn[index % len(self.drawn)] for index in indices]
        return self.rules.checked(drawn, of_a_batch=False)


def sample_indices(count: int, seed: int) -> Sequence[int]:
    """Returns indices below `count`: all, or the first and the last ones and others drawn by `seed`."""
    if count <= ALL_UP_TO:
        return range(count)
    drawn = random.Random(seed).sample(range(ENDS, count - ENDS), ALL_UP_TO - 2 * ENDS)
    return [*range(ENDS), *range(count - ENDS, count), *sorted(drawn)]


def places(documents: Documents, count: int, seed: int) -> Int64[np.ndarray, " n"]:
    """Returns some of the first `count` rows: runs of neighbors, from where reading can begin."""
    drawn = random.Random(seed).sample(range(count), min(count, PLACES - 2))
    starts = sorted({documents.entry_row(row) for row in (0, *drawn, max(0, count - NEIGHBORS))})
    rows = np.concatenate([np.arange(start, start + NEIGHBORS) for start in starts])
    return np.unique(rows[rows < count])


def name_hash(sample: Sample) -> int:
    """Returns 64 bits of task_id and sample_idx, the same in every process."""
    return _hash(f"{sample.sample_idx} {sample.task_id}".encode())


def content_hash(sample: Sample) -> int:
    """Returns 64 bits of all that a sample is, the same in every process."""
    return _hash(sample.content())


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big", signed=True)
