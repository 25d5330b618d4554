"""Batches under assembly: results of steps in, whole batches out, each row in its place whatever the order it came in.

R rows of a batch in all.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import numpy as np
from jaxtyping import Bool

from pod_job.config.schema import Exclude, ExtractConfig, Positions
from pod_job.extraction.packing import Placed
from pod_job.formats.quantized import Vectors, from_rows, on_the_way
from pod_job.formats.rows_table import from_columns
from pod_job.prompts.sources.sample import Sample
from pod_job.prompts.tokens import Prompt
from pod_job.run_folder.commit import Batch
from pod_job.storage.buffers import Pool


class OpenBatch:
    """One batch's vectors, filled prompt by prompt."""

    def __init__(
        self,
        number: int,
        prompts: Sequence[Prompt],
        special: Sequence[Bool[np.ndarray, "_"]],
        config: ExtractConfig,
        widths: Mapping[str, int],
        dtype: np.dtype,
        pool: Pool,
    ) -> None:
        """`special` tells which tokens of each prompt are special; the vectors' memory is `pool`'s."""
        self.number = number
        self.positions, self.exclude = config.positions, config.exclude
        self.prompts, self.special = prompts, special
        counts = [1 if self.positions is Positions.last else len(prompt.token_ids) for prompt in prompts]
        self.starts = np.concatenate([[0], np.cumsum(counts)])
        self.widths, self.dtype = widths, dtype
        self.taps = {}
        for name, width in widths.items():
            length, of_rows = on_the_way(width, dtype)
            self.taps[name] = pool.empty((int(self.starts[-1]), length), of_rows)
        self.missing = set(range(len(prompts)))

    def put(self, placed: Placed, shards: Mapping[str, Sequence[np.ndarray]]) -> bool:
        """Copies one prompt's vectors out of a step's output; True when the batch is whole."""
        begin, end = self.starts[placed.index], self.starts[placed.index + 1]
        for name, parts in shards.items():
            part, row = divmod(placed.row, len(parts[0]))
            at = placed.slot if self.positions is Positions.last else placed.start
            self.taps[name][begin:end] = parts[part][row, at : at + end - begin]
        self.missing.remove(placed.index)
        return not self.missing

    def finish(self) -> Batch:
        """The batch with its rows table."""
        counts = np.diff(self.starts)
        kept = [
            range(len(prompt.token_ids) - count, len(prompt.token_ids))
            for prompt, count in zip(self.prompts, counts, strict=True)
        ]
        return whole_batch(
            self.number,
            [prompt.sample for prompt in self.prompts],
            [prompt.token_ids for prompt in self.prompts],
            self.special,
            kept,
            {name: from_rows(rows, self.widths[name], self.dtype) for name, rows in self.taps.items()},
            self.exclude,
        )


def whole_batch(
    number: int,
    samples: Sequence[Sample],
    tokens: Sequence[np.ndarray],
    special: Sequence[np.ndarray],
    kept: Sequence[range],
    taps: dict[str, Vectors],
    exclude: Sequence[Exclude],
) -> Batch:
    """The batch of vectors `taps` at the `kept` positions of each sample, without the rows that are excluded.

    `tokens` and `special` of each sample go from its position 0 on.
    """
    counts = [len(positions) for positions in kept]
    marks = np.concatenate([mask[one.start : one.stop] for mask, one in zip(special, kept, strict=True)])
    columns = {
        "task_id": np.repeat(np.array([sample.task_id for sample in samples], object), counts),
        "sample_idx": np.repeat(np.array([sample.sample_idx for sample in samples], np.int32), counts),
        "position": np.concatenate([np.arange(one.start, one.stop) for one in kept]),
        "token_id": np.concatenate([ids[one.start : one.stop] for ids, one in zip(tokens, kept, strict=True)]),
        "special": marks,
    }
    if Exclude.special in exclude:
        columns = {name: column[~marks] for name, column in columns.items()}
        taps = {name: vectors[~marks] for name, vectors in taps.items()}
    rows = from_columns(columns, datetime.now(UTC).isoformat(timespec="seconds"))
    return Batch(number, len(samples), rows, taps)
