"""Batches under assembly: results of steps in, complete batches out, whatever the order in which prompts come.

R rows of a batch in all.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Shaped

from pod_job.config.extract import ExtractConfig, Positions
from pod_job.extraction.packing import Placed
from pod_job.formats.quantized import Vectors, from_rows, transfer_layout
from pod_job.formats.records import now
from pod_job.formats.rows_table import from_columns
from pod_job.formats.safetensors import DTYPE_OF
from pod_job.prompts.prompt import PROMPT_COLUMNS, Prompt, Tokenized
from pod_job.prompts.sources.sample import Sample
from pod_job.run_folder.commit import Batch, PromptCounts
from pod_job.storage.buffers import Pool


class OpenBatch:
    """One batch's vectors, filled prompt by prompt."""

    def __init__(
        self, number: int, tokenized: Tokenized, config: ExtractConfig, widths: Mapping[str, int], pool: Pool
    ) -> None:
        """The vectors' memory is `pool`'s."""
        self.number, self.config = number, config
        self.tokenized, self.prompts = tokenized, tokenized.prompts
        counts = [len(prompt.places) for prompt in self.prompts]
        self.starts = np.cumsum([0, *(np.minimum(counts, 1) if config.positions.one_per_prompt else counts)])
        self.widths, self.dtype = widths, DTYPE_OF[config.dtype.value]
        self.taps = {}
        for name, width in widths.items():
            length, row_dtype = transfer_layout(width, self.dtype)
            self.taps[name] = pool.empty((int(self.starts[-1]), length), row_dtype)
        self.facts = {name: np.empty(int(self.starts[-1]), np.float32) for name in config.token_facts}
        self.missing = set(range(len(self.prompts)))

    def put(self, placed: Placed, shards: Mapping[str, Sequence[np.ndarray]]) -> bool:
        """Copies one prompt's vectors and facts out of a step's output; returns whether the batch is complete."""
        begin, end = self.starts[placed.index], self.starts[placed.index + 1]
        rows = self.prompts[placed.index].rows
        if self.config.positions.one_per_prompt:
            places = slice(placed.slot, placed.slot + end - begin)
        elif rows is None:
            places = slice(placed.start, placed.start + placed.length)
        else:
            places = placed.start + rows
        for name, parts in shards.items():
            part, row = divmod(placed.row, len(parts[0]))
            of_rows = self.taps[name] if name in self.taps else self.facts[name]
            of_rows[begin:end] = parts[part][row, places]
        self.missing.remove(placed.index)
        return not self.missing

    def finish(self) -> Batch:
        """Returns the batch with its rows table."""
        taps = {name: from_rows(rows, self.widths[name], self.dtype) for name, rows in self.taps.items()}
        columns = mean_columns if self.config.positions is Positions.mean else row_columns
        return make_batch(self.number, self.tokenized, columns(self.prompts) | self.facts, taps)


def make_batch(number: int, tokenized: Tokenized, columns: Mapping[str, np.ndarray], taps: dict[str, Vectors]) -> Batch:
    """Returns the batch of the vectors `taps`, with the rows table of these columns."""
    unwanted = {*PROMPT_COLUMNS} - {*tokenized.columns}
    columns = {name: column for name, column in columns.items() if name not in unwanted}
    batch = Batch(number, tokenized.samples, from_columns(columns, now()), taps)
    return replace(batch, prompts=prompt_counts(tokenized))


def row_columns(prompts: Sequence[Prompt]) -> dict[str, np.ndarray]:
    """Returns the columns of a table with one row for each of the prompts' `rows`, in their order."""
    places = [prompt.places for prompt in prompts]
    counts = [len(of_prompt) for of_prompt in places]
    nothing = np.zeros(0, np.int32)  # a batch may be without samples

    def joined(values: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate([nothing, *(of_prompt[at] for of_prompt, at in zip(values, places, strict=True))])

    return {
        **sample_columns(prompts, places),
        "position": joined([prompt.positions for prompt in prompts]),
        "token_id": joined([prompt.token_ids for prompt in prompts]),
        "special": joined([prompt.special_marks for prompt in prompts]).astype(bool),
        "role": joined([no_roles(prompt) if prompt.roles is None else prompt.roles for prompt in prompts]),
        "window": np.repeat(np.array([prompt.window for prompt in prompts], np.int32), counts),
        "window_position": np.concatenate([nothing, *places]),
    }


def sample_columns(prompts: Sequence[Prompt], places: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the columns that name the sample of each row."""
    samples: list[Sample] = []
    numbers = [np.zeros(0, np.int64)]
    for prompt, at in zip(prompts, places, strict=True):
        of = prompt.origin
        if of is None or of.sample_of is None:
            numbers.append(np.full(len(at), len(samples)))
            samples.append(prompt.sample)
        else:
            numbers.append(len(samples) + of.sample_of[at])
            samples += of.samples
    at = np.concatenate(numbers)
    return {
        "task_id": np.array([sample.task_id for sample in samples], object)[at],
        "sample_idx": np.array([sample.sample_idx for sample in samples], np.int32)[at],
    }


def no_roles(prompt: Prompt) -> Shaped[np.ndarray, " length"]:
    return np.full(len(prompt.token_ids), "", object)


def mean_columns(prompts: Sequence[Prompt]) -> dict[str, np.ndarray]:
    """Returns the columns of a table of which each row is the mean of a prompt: no position, token or flag is its."""
    averaged = [prompt for prompt in prompts if len(prompt.places)]
    unknown = np.full(len(averaged), -1, np.int32)
    return {
        "task_id": np.array([prompt.sample.task_id for prompt in averaged], object),
        "sample_idx": np.array([prompt.sample.sample_idx for prompt in averaged], np.int32),
        "position": unknown,
        "token_id": unknown,
        "window": np.zeros(len(averaged), np.int32),
        "window_position": unknown,
    }


def prompt_counts(tokenized: Tokenized) -> PromptCounts:
    """Returns what the commit record tells of a batch's prompts."""
    skipped = Counter(broken.reason.value for broken in tokenized.skipped)
    doubled = sum(prompt.doubled_bos for prompt in tokenized.prompts)
    dropped = tokenized.dropped_tokens
    read = sum(len(prompt.token_ids) for prompt in tokenized.prompts)
    return PromptCounts(
        skipped=dict(sorted(skipped.items())),
        doubled_bos=doubled,
        tokens=read + dropped if tokenized.drops else 0,
        dropped_tokens=dropped,
    )
