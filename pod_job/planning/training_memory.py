"""Memory that training takes on each device, from the configuration, and the shuffle buffer that fits. No jax."""

import math
from collections.abc import Mapping

import msgspec

from pod_job.config.schema import JobConfig
from pod_job.errors import JobError
from pod_job.models.sharding import row_shards
from pod_job.planning.memory import run_memory
from pod_job.planning.trainer_layout import layout_of
from pod_job.planning.training import TrainInputs
from pod_job.run_folder.train_identity import SaeRecord, TrainIdentity
from pod_job.units import size_text

COPIES = 4
"""Arrays of the size of each parameter: itself, its gradient, and two moments of Adam."""
FLOAT_BYTES, ROW_BYTES = 4, 2
"""Bytes of a parameter, and of a value of a row in the buffer."""


class TrainingMemory(msgspec.Struct, frozen=True):
    """Bytes on each device: of the model, the SAEs with their optimizer, the shuffle buffer, and a step's latents."""

    model: int
    saes: int
    buffer: int
    latents: int

    @property
    def total(self) -> int:
        return self.model + self.saes + self.buffer + self.latents

    def __str__(self) -> str:
        sizes = {"model": self.model, "SAEs and optimizer": self.saes, "shuffle buffer": self.buffer}
        sizes |= {"latents of a step": self.latents}
        return "each device: " + ", ".join(f"{size_text(size)} {name}" for name, size in sizes.items() if size)


def training_memory(inputs: TrainInputs) -> TrainingMemory:
    """Returns what training takes on each device at least; what the compiler needs for itself comes on top."""
    config, train = inputs.config, inputs.train
    layout = layout_of(train, config.mesh.data * config.mesh.model)
    split, rows = layout.saes * layout.model, -(-train.batch_rows // layout.data)
    return TrainingMemory(
        model=run_memory(inputs.stream).weights if inputs.stream else 0,
        saes=sum(parameters(sae) for sae in train.saes) * FLOAT_BYTES * COPIES // split,
        buffer=math.ceil(train.buffer_rows * buffer_row_bytes(inputs.widths, config)),
        latents=sum(sae.latents for sae in train.saes) * rows * FLOAT_BYTES // split,
    )


def parameters(sae: SaeRecord) -> int:
    """Returns the number of parameters of an SAE, but for vectors of the latents' length."""
    matrices = sae.latents * (sae.input_width + sae.output_width)
    return matrices + (sae.input_width * sae.output_width if sae.skip else 0)


def buffer_row_bytes(widths: Mapping[str, int], config: JobConfig) -> float:
    """Returns the bytes of a device's memory for each row of the shuffle buffer, which is split over devices."""
    return sum(widths.values()) * ROW_BYTES / row_shards(config.mesh, config.sharding)


def check_buffer(inputs: TrainInputs, available: int, where: str) -> None:
    """Raises JobError where training takes more than the `available` bytes of each device, with the buffer that fits.

    `where` names what has these bytes, for the message.
    """
    memory, train = training_memory(inputs), inputs.train
    if memory.total <= available:
        return
    left = available - (memory.total - memory.buffer)
    fits = math.floor(left / buffer_row_bytes(inputs.widths, inputs.config)) // train.batch_rows * train.batch_rows
    taken = f"{size_text(memory.total)} ({str(memory).removeprefix('each device: ')})"
    if fits >= train.batch_rows:
        cause, fix = f"train.buffer_rows={train.buffer_rows}", f"use train.buffer_rows={fits} or less"
    else:
        cause, fix = "train.saes", "no buffer fits beside: train fewer SAEs, fewer latents, or on more devices"
    raise JobError(f"{cause}: training takes {taken} of each device, and {where} has {size_text(available)}; {fix}")


def steps_line(train: TrainIdentity) -> str:
    """Returns the schedule in one line for people."""
    return (
        f"{train.steps:,} steps of {train.batch_rows:,} rows = {train.rows:,} rows; warm-up "
        f"{train.warmup_steps:,}, decay {train.decay_steps:,}; shuffle buffer of {train.buffer_rows:,} rows"
    )
