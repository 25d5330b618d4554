"""Part of a run's identity that says how SAEs are trained."""

import msgspec

from pod_job.formats.records import Count, Record


class SaeRecord(Record, frozen=True, omit_defaults=True):
    """An SAE as it was configured; `name` is that of its folder below saes/. Widths are those of its taps."""

    name: str
    architecture: str
    taps: list[str]
    latents: Count
    seed: Count
    input_width: Count
    output_width: Count
    learning_rate: float
    target: str | None = None
    k: Count | None = None
    sparsity: float | None = None
    skip: bool = False
    groups: list[int] = msgspec.field(default_factory=list)


class TrainIdentity(Record, frozen=True, omit_defaults=True):
    """Everything beside model and data that trained weights depend on.

    `run`: checksum over the files of the run that the vectors were read from; None of a stream, which has `step_rows`,
    the rows of prompts in a step of the forward pass.
    """

    source: str
    saes: list[SaeRecord]
    steps: Count
    batch_rows: Count
    buffer_rows: Count
    warmup_steps: Count
    decay_steps: Count
    sparsity_warmup_steps: Count
    statistics_rows: Count
    seed: Count
    dtype: str
    run: str | None = None
    step_rows: Count | None = None

    @property
    def rows(self) -> int:
        """Rows of all steps."""
        return self.steps * self.batch_rows
