"""Documents that SAEs are evaluated on, packed into steps in which every token's document is known.

B rows of a step, S positions.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32

from pod_job.extraction.packing import Queued, StepInput, pack_steps
from pod_job.prompts.concat import joined
from pod_job.prompts.prompt import Prompt, PromptRules
from pod_job.prompts.samples import without_broken
from pod_job.prompts.tasks import Samples
from pod_job.prompts.tokenizer import Tokenizer
from pod_job.prompts.tokens import usable_prompts

SAMPLES = 64
"""Samples that are tokenized at a time."""


@dataclass(frozen=True)
class Documents:
    """Documents from number `skip` on, until they have `tokens` tokens."""

    samples: Samples
    tokenizer: Tokenizer
    rules: PromptRules
    skip: int
    tokens: int

    def prompts(self) -> Iterator[Queued]:
        """Yields the prompts in order, each with a number of its own."""
        taken = number = 0
        for start in range(self.skip, len(self.samples), SAMPLES):
            numbers = range(start, min(start + SAMPLES, len(self.samples)))
            usable, _ = without_broken(self.samples.load(numbers))
            for prompt in joined([usable_prompts(self.tokenizer, usable, self.rules)]).prompts:
                if taken >= self.tokens:
                    return
                taken += len(prompt.token_ids)
                number += 1
                yield Queued(1, number, prompt)

    def steps(
        self, rows: int, seq_len: int, prompts_per_row: int
    ) -> Iterator[tuple[StepInput, Int32[np.ndarray, "B S"]]]:
        """Yields the documents packed into `rows` rows, and the number of each token's document; -1: padding."""
        waiting: dict[int, np.ndarray] = {}
        numbers: dict[str, int] = {}

        def noted() -> Iterator[Queued]:
            for item in self.prompts():
                waiting[item.index] = document_numbers(item.prompt, numbers)
                yield item

        for step in pack_steps(noted(), rows, seq_len, prompts_per_row):
            documents = np.full(step.token_ids.shape, -1, np.int32)
            for place in step.placed:
                documents[place.row, place.start : place.start + place.length] = waiting.pop(place.index)
            yield step, documents


def document_numbers(prompt: Prompt, numbers: dict[str, int]) -> Int32[np.ndarray, " length"]:
    """Returns the number of the document that each token of a prompt is of; new documents are added to `numbers`."""
    origin = prompt.origin
    samples = origin.samples if origin is not None and origin.samples else (prompt.sample,)
    of_samples = np.array([numbers.setdefault(str(sample), len(numbers)) for sample in samples], np.int32)
    if origin is None or origin.sample_of is None:
        return np.repeat(of_samples[:1], len(prompt.token_ids))
    return of_samples[origin.sample_of]
