"""Batches under assembly: results of steps in, complete batches out, whatever the order in which prompts come.

R rows of a batch in all.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Int32

from pod_job.config.schema import Exclude, ExtractConfig, Positions
from pod_job.extraction.packing import Placed
from pod_job.formats.quantized import Vectors, from_rows, transfer_layout
from pod_job.formats.records import now
from pod_job.formats.rows_table import from_columns
from pod_job.formats.safetensors import DTYPE_OF
from pod_job.prompts.sources.sample import Sample
from pod_job.prompts.tokens import Tokenized
from pod_job.run_folder.commit import Batch, PromptCounts
from pod_job.storage.buffers import Pool


class OpenBatch:
    """One batch's vectors, filled prompt by prompt."""

    def __init__(
        self,
        number: int,
        tokenized: Tokenized,
        special: Sequence[Bool[np.ndarray, "_"]],
        config: ExtractConfig,
        widths: Mapping[str, int],
        pool: Pool,
    ) -> None:
        """`special` marks the special tokens of each prompt; the vectors' memory is `pool`'s."""
        self.number, self.config = number, config
        self.tokenized, self.prompts, self.special = tokenized, tokenized.prompts, special
        counts = [1 if config.positions is Positions.last else len(prompt.token_ids) for prompt in self.prompts]
        self.starts = np.cumsum([0, *counts])
        self.widths, self.dtype = widths, DTYPE_OF[config.dtype.value]
        self.taps = {}
        for name, width in widths.items():
            length, row_dtype = transfer_layout(width, self.dtype)
            self.taps[name] = pool.empty((int(self.starts[-1]), length), row_dtype)
        self.missing = set(range(len(self.prompts)))

    def put(self, placed: Placed, shards: Mapping[str, Sequence[np.ndarray]]) -> bool:
        """Copies one prompt's vectors out of a step's output; returns whether the batch is complete."""
        begin, end = self.starts[placed.index], self.starts[placed.index + 1]
        for name, parts in shards.items():
            part, row = divmod(placed.row, len(parts[0]))
            at = placed.slot if self.config.positions is Positions.last else placed.start
            self.taps[name][begin:end] = parts[part][row, at : at + end - begin]
        self.missing.remove(placed.index)
        return not self.missing

    def finish(self) -> Batch:
        """Returns the batch with its rows table."""
        samples = [
            SampleRows(prompt.sample, prompt.token_ids, mask, range(len(mask) - count, len(mask)))
            for prompt, mask, count in zip(self.prompts, self.special, np.diff(self.starts).tolist(), strict=True)
        ]
        taps = {name: from_rows(rows, self.widths[name], self.dtype) for name, rows in self.taps.items()}
        batch = make_batch(self.number, samples, taps, self.config.exclude)
        return replace(batch, prompts=prompt_counts(self.tokenized))


def prompt_counts(tokenized: Tokenized) -> PromptCounts:
    """Returns what the commit record tells of a batch's prompts."""
    skipped = Counter(broken.reason.value for broken in tokenized.skipped)
    doubled = sum(prompt.doubled_bos for prompt in tokenized.prompts)
    return PromptCounts(skipped=dict(sorted(skipped.items())), doubled_bos=doubled)


@dataclass(frozen=True)
class SampleRows:
    """A sample's tokens from position 0 on, which of them are special, and the `positions` that have a vector."""

    sample: Sample
    token_ids: Int32[np.ndarray, " length"]
    special: Bool[np.ndarray, " length"]
    positions: range


def make_batch(
    number: int, samples: Sequence[SampleRows], taps: dict[str, Vectors], exclude: Sequence[Exclude]
) -> Batch:
    """Returns the batch of the vectors `taps` of all `samples`, without the rows that are excluded."""
    counts = [len(rows.positions) for rows in samples]
    spans = [slice(rows.positions.start, rows.positions.stop) for rows in samples]
    nothing = np.zeros(0, np.int32)  # a batch may be without samples
    marks = np.concatenate([nothing > 0, *(rows.special[span] for rows, span in zip(samples, spans, strict=True))])
    columns = {
        "task_id": np.repeat(np.array([rows.sample.task_id for rows in samples], object), counts),
        "sample_idx": np.repeat(np.array([rows.sample.sample_idx for rows in samples], np.int32), counts),
        "position": np.concatenate([nothing, *(np.arange(span.start, span.stop) for span in spans)]),
        "token_id": np.concatenate(
            [nothing, *(rows.token_ids[span] for rows, span in zip(samples, spans, strict=True))]
        ),
        "special": marks,
    }
    if Exclude.special in exclude:
        columns = {name: column[~marks] for name, column in columns.items()}
        taps = {name: vectors[~marks] for name, vectors in taps.items()}
    table = from_columns(columns, now())
    return Batch(number, len(samples), table, taps)
