"""SAEs and schedule of a training run from its configuration, as its identity records them. No jax."""

from collections.abc import Mapping, Sequence

import msgspec

from pod_job.config.schema import JobConfig
from pod_job.config.train import SaeSpec, TrainConfig, sae_names
from pod_job.errors import JobError
from pod_job.models.sharding import row_shards
from pod_job.run_folder.train_identity import SaeRecord, TrainIdentity

WARMUP_STEPS, WARMUP_SHARE, DECAY_SHARE = 1000, 10, 5


def steps_of(train: TrainConfig, rows: int | None) -> int:
    """Returns the training steps. JobError where `rows`, all that there are in one pass, are too few for them.

    `rows` is None where nobody has counted them.
    """
    steps, batch = train.steps, train.batch_rows
    if steps is None:
        steps = (train.tokens if train.tokens is not None else (rows or 0) * train.epochs) // batch
    if rows is not None and steps * batch > rows * train.epochs:
        given = f"train.steps={train.steps}" if train.tokens is None else f"train.tokens={train.tokens}"
        fix = f"lower it to {rows * train.epochs if train.tokens is not None else rows * train.epochs // batch}"
        raise JobError(
            f"{given} with train.batch_rows={batch} needs {steps * batch:,} rows, and train.epochs={train.epochs} of "
            f"{rows:,} rows are fewer; {fix}, or raise train.epochs to {-(-steps * batch // max(rows, 1))}"
        )
    if not steps:
        raise JobError(f"train.batch_rows={batch} is more than all {rows:,} rows; lower it")
    return steps


def train_identity(train: TrainConfig, widths: Mapping[str, int], steps: int) -> TrainIdentity:
    """Returns what the trained weights depend on, `run` and `step_rows` aside; `widths` are those of the taps.

    Raises:
        JobError: the schedule does not fit into the steps, or the taps of an SAE not to it.
    """
    warmup = min(WARMUP_STEPS, steps // WARMUP_SHARE) if train.warmup_steps is None else train.warmup_steps
    decay = steps // DECAY_SHARE if train.decay_steps is None else train.decay_steps
    sparsity = warmup if train.sparsity_warmup_steps is None else train.sparsity_warmup_steps
    if warmup + decay > steps or sparsity > steps:
        raise JobError(
            f"train.warmup_steps={warmup}, train.decay_steps={decay} and train.sparsity_warmup_steps={sparsity} do not "
            f"fit into {steps:,} steps; lower them, or train on more tokens"
        )
    return TrainIdentity(
        source=train.source.value,
        saes=sae_records(train.specs, widths),
        steps=steps,
        batch_rows=train.batch_rows,
        buffer_rows=train.buffer_rows,
        warmup_steps=warmup,
        decay_steps=decay,
        sparsity_warmup_steps=sparsity,
        statistics_rows=train.statistics_rows,
        seed=train.seed,
        dtype=train.dtype.value,
    )


def stream_identity(config: JobConfig, widths: Mapping[str, int]) -> TrainIdentity:
    """Returns what weights depend on that are trained on a stream. JobError as `train_identity` raises it."""
    check_batch_rows(config.train.batch_rows, step_rows(config), config.extract.seq_len)
    identity = train_identity(config.train, widths, steps_of(config.train, None))
    return msgspec.structs.replace(identity, step_rows=step_rows(config))


def step_rows(config: JobConfig) -> int:
    """Returns the rows of prompts in a step of the forward pass."""
    return row_shards(config.mesh, config.sharding) * config.extract.rows_per_device


def check_batch_rows(batch_rows: int, rows: int, seq_len: int) -> None:
    """Raises JobError unless a batch is an equal part of a step's positions, or so many whole steps."""
    positions = rows * seq_len
    parts = [rows * size for size in range(1, seq_len + 1) if seq_len % size == 0]
    if batch_rows in parts or batch_rows % positions == 0:
        return
    near = sorted([*parts, max(1, round(batch_rows / positions)) * positions], key=lambda fit: abs(fit - batch_rows))
    raise JobError(
        f"train.batch_rows={batch_rows} is no part of a step of {rows} x extract.seq_len={seq_len} = {positions} "
        f"positions, nor so many steps; use {near[0]} or {near[1]}"
    )


def check_step_rows(config: JobConfig, train: TrainIdentity, recorded: TrainIdentity | None) -> None:
    """Raises JobError where a run goes on with steps of another number of rows, which would change their content."""
    was, here = None if recorded is None else recorded.step_rows, train.step_rows
    if was is None or here is None or was == here:
        return
    shards = row_shards(config.mesh, config.sharding)
    rows = f"extract.rows_per_device={config.extract.rows_per_device}"
    fix = f"use extract.rows_per_device={was // shards}" if was % shards == 0 else f"use a mesh that divides {was}"
    raise JobError(f"{rows} makes steps of {here} rows on this mesh, and the run was begun with {was}; {fix}")


def sae_records(specs: Sequence[SaeSpec], widths: Mapping[str, int]) -> list[SaeRecord]:
    """Returns the SAEs as they are recorded. JobError where the taps of a crosscoder are not of one width."""
    records = []
    for name, spec in zip(sae_names(specs), specs, strict=True):
        for tap in spec.taps if spec.width is not None else ():
            if widths[tap] != spec.width:
                raise JobError(
                    f"train.saes: width={spec.width} is not that of {tap}, whose vectors have {widths[tap]}; use "
                    f"width={widths[tap]}, or another tap"
                )
        if len({widths[tap] for tap in spec.taps}) > 1:
            of_taps = ", ".join(f"{tap} of {widths[tap]}" for tap in spec.taps)
            raise JobError(f"train.saes: a crosscoder is of taps of one width, and has {of_taps}; use taps of one site")
        record = SaeRecord(
            name=name,
            architecture=spec.architecture.value,
            taps=list(spec.taps),
            target=spec.target,
            latents=spec.latents,
            input_width=sum(widths[tap] for tap in spec.taps),
            output_width=widths[spec.target] if spec.target else sum(widths[tap] for tap in spec.taps),
            k=spec.k,
            sparsity=spec.sparsity,
            learning_rate=spec.learning_rate,
            seed=spec.seed,
            skip=spec.skip,
            groups=list(spec.group_sizes),
        )
        records.append(record)
    return records
