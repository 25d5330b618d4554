"""Batches under assembly: results of steps in, whole batches out, each row in its place whatever the order it came in.

R rows of a batch in all.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import numpy as np
from jaxtyping import Bool

from pod_job.commit import Batch
from pod_job.config import Exclude, ExtractConfig, Positions
from pod_job.packing import Placed
from pod_job.rows import from_columns
from pod_job.tokens import Prompt


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
    ) -> None:
        """`special` tells which tokens of each prompt are special."""
        self.number = number
        self.positions, self.exclude = config.positions, config.exclude
        self.prompts, self.special = prompts, special
        counts = [1 if self.positions is Positions.last else len(prompt.token_ids) for prompt in prompts]
        self.starts = np.concatenate([[0], np.cumsum(counts)])
        self.taps = {name: np.empty((int(self.starts[-1]), width), dtype) for name, width in widths.items()}
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
        kept = [prompt.token_ids[-count:] for prompt, count in zip(self.prompts, counts, strict=True)]
        positions = [
            np.arange(len(prompt.token_ids) - count, len(prompt.token_ids))
            for prompt, count in zip(self.prompts, counts, strict=True)
        ]
        special = np.concatenate([mask[-count:] for mask, count in zip(self.special, counts, strict=True)])
        columns = {
            "task_id": np.repeat(np.array([p.sample.task_id for p in self.prompts], object), counts),
            "sample_idx": np.repeat(np.array([p.sample.sample_idx for p in self.prompts], np.int32), counts),
            "position": np.concatenate(positions),
            "token_id": np.concatenate(kept),
            "special": special,
        }
        taps = self.taps
        if Exclude.special in self.exclude:
            columns = {name: column[~special] for name, column in columns.items()}
            taps = {name: vectors[~special] for name, vectors in taps.items()}
        rows = from_columns(columns, datetime.now(UTC).isoformat(timespec="seconds"))
        return Batch(self.number, len(self.prompts), rows, taps)
