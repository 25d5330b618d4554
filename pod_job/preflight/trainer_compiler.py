"""Compiles the trainer of SAEs for a pod without having the pod, and reads its cost from the result.

Needs what `pod_compiler` needs.
"""

import math
import time
from typing import Any

import jax

from pod_job.config.train import Architecture
from pod_job.models.mesh import make_mesh
from pod_job.preflight.compiled_text import ARRAY, Operation, collectives, hidden_bytes, read_program, total_cycles
from pod_job.preflight.forecast import Forecast
from pod_job.preflight.planned_job import PlannedTrainer
from pod_job.preflight.pod_compiler import network_seconds, too_big
from pod_job.preflight.pod_devices import pod_devices
from pod_job.preflight.tpu_facts import Slice
from pod_job.preflight.training_forecast import BUFFER, OPTIMIZER, ROWS, SAES
from pod_job.training.architectures.selection_kernel import kernel_cycles
from pod_job.training.architectures.selection_split import lanes_cycles
from pod_job.training.plans import make_trainer
from pod_job.training.recipe import SaePlan
from pod_job.training.trainer import Trainer

PASSES = 3
"""Products with each weight matrix: one of the loss, two of its gradient."""
KERNEL, SPLIT_KERNEL = "keep_largest", "largest_of_lanes"
WITH_AUXK = (Architecture.topk, Architecture.batch_topk, Architecture.matryoshka)
REVIVED_CYCLES = 2 * (14 + 64)
"""Cycles for each dead latent that AuxK computes alone, by the compiler's listing of instructions: two rows gathered,
and two rows of their gradients scattered."""


def trainer_forecasts(planned: PlannedTrainer) -> list[Forecast]:
    """Compiles the step of the job's trainer and returns its forecast. JobError as of `pod_compiler.forecasts`."""
    mesh = make_mesh(planned.config.mesh, pod_devices(planned.pod))
    return [forecast(make_trainer(planned.train, planned.widths, mesh, planned.config.sharding), planned.pod)]


def forecast(trainer: Trainer, pod: Slice) -> Forecast:
    """Returns the forecast of the trainer's step: rows into the shuffle buffer, and one step of every optimizer.

    It is that of a step in which dead latents are revived, of which there are not more than `SaeShape.few_latents`; one
    before which none is dead is quicker.
    """
    started = time.monotonic()
    try:
        compiled = trainer.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        return too_big("trainer", pod, time.monotonic() - started, error)
    operations = read_program(compiled.as_text() or "")
    moved, hbm = collectives(operations), memory(trainer, compiled)
    hidden = hidden_bytes(operations, pod.network_bytes_s / pod.chip.cycles_s)
    kernel = uncounted_cycles(trainer, operations) / pod.chip.cycles_s
    state_bytes = hbm[SAES] + hbm[OPTIMIZER] + hbm.get(BUFFER, 0)
    return Forecast(
        program="trainer",
        topology=pod.topology,
        chips=pod.chips,
        fits=hbm["total"] <= pod.chip.hbm_bytes,
        compile_s=time.monotonic() - started,
        hbm=hbm,
        hbm_available=pod.chip.hbm_bytes,
        seconds={
            "compute": total_cycles(operations) / pod.chip.cycles_s + kernel,
            "hbm": (2 * state_bytes + hbm[ROWS]) / pod.chip.hbm_bytes_s,  # the state is read and written
            "network": network_seconds(moved, pod) - hidden / pod.network_bytes_s,
        },
        kernel_s=kernel,
        ideal_s=sum(map(sae_flops, trainer.plans)) * trainer.rows / pod.chips / pod.chip.peak_flops,
        tokens=trainer.rows,
        collectives=moved,
    )


def uncounted_cycles(trainer: Trainer, operations: list[Operation]) -> float:
    """Returns the cycles of what the compiler states none for: the kernel that chooses latents, and rows by number."""
    cycles, shapes = 0.0, {operation.name: operation.shape for operation in operations}
    for operation in operations:
        if operation.kind == "custom-call" and operation.name.startswith(KERNEL):
            rows, latents = rows_and_latents(operation.shape)
            cycles += operation.times * kernel_cycles(rows, latents, most_chosen(trainer, latents))
        elif operation.kind == "custom-call" and operation.name.startswith(SPLIT_KERNEL):
            cycles += operation.times * lanes_cycles(*rows_and_latents(shapes[operation.operands[0]]))
    for group in trainer.groups:
        if group.shape.architecture in WITH_AUXK and any(plan.auxiliary for plan in group.plans):
            split = trainer.sae_mesh.shape
            few = group.shape.few_latents(split["model"])
            cycles += REVIVED_CYCLES * few * len(group.plans) / split["saes"]
    return cycles


def rows_and_latents(shape: str) -> tuple[int, int]:
    """Returns the rows, over all SAEs, and the latents of an array as the compiler's text has it."""
    _, sizes = ARRAY.findall(shape)[0]
    *rows, latents = map(int, sizes.split(","))
    return math.prod(rows), latents


def most_chosen(trainer: Trainer, latents: int) -> int:
    """Returns the largest number that the kernel chooses of so many latents: k of all, or AuxK's of the dead ones."""
    of_all = [group.shape.k or 0 for group in trainer.groups if group.shape.latents == latents]
    return max(of_all or [group.shape.auxiliary_k for group in trainer.groups])


def memory(trainer: Trainer, compiled: jax.stages.Compiled) -> dict[str, int]:
    """Returns the bytes of a chip's memory by kind, of which the state is donated: it is there once."""
    sizes, state = compiled.memory_analysis(), trainer.abstract_state
    assert sizes is not None
    kinds = {
        SAES: device_bytes([group.params for group in state.groups]),
        OPTIMIZER: device_bytes([group.moments for group in state.groups]),
        BUFFER: device_bytes(state.buffer),
    }
    kinds[ROWS] = sizes.argument_size_in_bytes - sum(kinds.values())
    kinds |= {"temporaries": sizes.temp_size_in_bytes, "program": sizes.generated_code_size_in_bytes}
    kinds["results"] = sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    return kinds | {"total": sum(kinds.values())}


def device_bytes(arrays: Any) -> int:
    """Returns the bytes that arrays, given by their shapes and shardings, take on one device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(arrays)
    )


def sae_flops(plan: SaePlan) -> float:
    """Returns the FLOPs of training an SAE on one row: dense products with all of its matrices."""
    shape = plan.shape
    skip = shape.input_width * shape.output_width if shape.skip else 0
    return 2.0 * PASSES * (shape.latents * (shape.input_width + shape.output_width) + skip)
