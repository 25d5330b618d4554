"""Compiles the programs of a job for a pod without having the pod, and reads their cost from the result.

Needs libtpu, which compiles on any x86-64 Linux machine; the environment must hold `environment.COMPILE_ONLY` before
jax starts.
"""

import re
import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from pod_job.config.extract import Positions
from pod_job.config.generate import Mode, cache_slots
from pod_job.extraction.feeding import step_rows
from pod_job.extraction.step import compile_step
from pod_job.generation.decoding import compile_generation
from pod_job.generation.shape import shape_for
from pod_job.models.arch import Arch
from pod_job.models.decoder import Decoder, Request
from pod_job.models.layer_loop import layers_needed
from pod_job.models.mesh import make_mesh, placement, weight_shardings
from pod_job.models.taps import Tap
from pod_job.planning.inputs import needed_weights
from pod_job.planning.model_cost import prefill_positions, step_flops, step_positions, token_flops, vector_bytes
from pod_job.preflight.compiled_text import Collective, collectives, read_program, total_cycles
from pod_job.preflight.forecast import Forecast
from pod_job.preflight.kernel_seconds import kernel_seconds
from pod_job.preflight.model_kernels import model_kernel_seconds
from pod_job.preflight.planned_job import PlannedJob
from pod_job.preflight.pod_devices import pod_devices
from pod_job.preflight.tpu_facts import BUCKET_BYTES_S, Slice
from pod_job.units import GB

FEW = (Positions.last, Positions.first)
"""Positions of which a step wants one of each prompt."""


@dataclass(frozen=True)
class Program:
    """A compiled program with facts that its text lacks: model FLOPs, tokens and stored bytes of one run on all chips.

    `layers` is how many decoder layers it runs over all positions.
    """

    name: str
    compiled: jax.stages.Compiled
    flops: float
    tokens: int
    stored_bytes: int
    layers: int
    tokens_in_turn: int = 1


def forecasts(job: PlannedJob) -> list[Forecast]:
    """Compiles the job's programs for its pod and returns the forecast of each.

    Where a program does not fit into a chip's memory, returns one forecast with fits=False.

    Raises:
        JobError: libtpu is missing, it does not know the topology, or the mesh is not the pod's.
    """
    devices, started = pod_devices(job.pod), time.monotonic()
    try:
        programs = compile_for(job, devices)
    except jax.errors.JaxRuntimeError as error:
        name = {Mode.generate: "generation"}.get(job.config.mode, step_name(job.config.mode))
        return [too_big(name, job.pod, time.monotonic() - started, error)]
    compile_s = time.monotonic() - started
    # The cache: donated by prefill to decode, and by decode to itself, without a copy.
    cache = max(program.compiled.memory_analysis().alias_size_in_bytes for program in programs)  # type: ignore[union-attr]
    return [read_forecast(program, job, compile_s, cache) for program in programs]


def too_big(program: str, pod: Slice, compile_s: float, error: Exception) -> Forecast:
    """Returns the forecast of a program that the compiler refused for its size; raises any other error again."""
    if "RESOURCE_EXHAUSTED" not in str(error):
        raise error
    return Forecast(
        program=program,
        topology=pod.topology,
        chips=pod.chips,
        fits=False,
        compile_s=compile_s,
        hbm={"total": memory_needed(str(error))},
        hbm_available=pod.chip.hbm_bytes,
    )


def step_name(mode: Mode) -> str:
    return "forward" if mode is Mode.train else "step"


def read_forecast(program: Program, job: PlannedJob, compile_s: float, cache: int) -> Forecast:
    """Returns the forecast of a compiled program; `cache` is the bytes of keys and values that stay on a chip."""
    operations, pod, rates = read_program(program.compiled.as_text() or ""), job.pod, job.config.preflight
    moved = collectives(operations)
    hbm, turns = memory(program.compiled, cache), program.tokens_in_turn
    kernel, origin = kernel_seconds(operations, job, program.layers)
    kernel *= turns
    kernel += turns * model_kernel_seconds(operations, job, program.tokens // turns, program.layers)
    host_s = pod.chip.host_bytes_s if rates.host_gb_s is None else rates.host_gb_s * GB
    bucket_s = BUCKET_BYTES_S if rates.bucket_gb_s is None else rates.bucket_gb_s * GB
    leaving = {"host": program.stored_bytes / pod.chips / host_s, "bucket": program.stored_bytes / pod.hosts / bucket_s}
    if job.config.mode is Mode.train:  # the vectors stay on the chips
        leaving = {}
    return Forecast(
        program=program.name,
        topology=pod.topology,
        chips=pod.chips,
        fits=hbm["total"] <= pod.chip.hbm_bytes,
        compile_s=compile_s,
        hbm=hbm,
        hbm_available=pod.chip.hbm_bytes,
        seconds={
            "compute": total_cycles(operations) / pod.chip.cycles_s + kernel,
            "hbm": (turns * (hbm["weights and inputs"] + cache) + hbm["results"] / 2) / pod.chip.hbm_bytes_s,
            "network": network_seconds(moved, pod),
            **leaving,
        },
        kernel_s=kernel,
        kernel_origin=origin,
        ideal_s=program.flops / pod.chips / pod.chip.peak_flops,
        tokens=program.tokens,
        tokens_in_turn=turns,
        collectives=moved,
        stored_bytes=program.stored_bytes,
        cache_bytes=cache,
    )


def network_seconds(moved: list[Collective], pod: Slice) -> float:
    """Returns the seconds of the collectives of a run, as if nothing hid them."""
    return sum(kind.count * kind.bytes for kind in moved) / pod.network_bytes_s


def compile_for(job: PlannedJob, devices: list[Any]) -> list[Program]:
    """Compiles the very programs that job.py compiles, from shapes alone."""
    config, arch, taps, extract = job.config, job.arch, job.taps, job.config.extract
    mesh, table = make_mesh(config.mesh, devices), needed_weights(config, arch)
    dtype = jnp.dtype(config.model.dtype.value)
    shardings = weight_shardings(mesh, config.sharding, table)
    params: Any = {
        name: jax.ShapeDtypeStruct(weight.shape, dtype, sharding=shardings[name]) for name, weight in table.items()
    }
    model = Decoder(arch, taps, dtype, placement(mesh, config.sharding, shardings, config.model.kernels))
    split = step_rows(config, mesh)
    rows, position_bytes = split.count, vector_bytes(arch, taps, extract)
    if config.mode is not Mode.generate:
        step = compile_step(model, {"params": params}, split, extract)
        stored = rows * step_positions(extract) * position_bytes
        select = selected(rows, extract.prompts_per_row) if extract.positions in FEW else None
        layers = whole_layers(arch, Request(taps, select, logits=False), layers_run(taps), extract.seq_len)
        if config.mode is Mode.train:
            stored = 0
        head_flops = 0.0
        if extract.token_facts:
            layers, head_flops = arch.layers, 2.0 * rows * extract.seq_len * arch.hidden * arch.vocab
        flops = head_flops + step_flops(arch, layers, rows, extract.seq_len)
        return [Program(step_name(config.mode), step, flops, rows * extract.seq_len, stored, layers)]
    shape = shape_for(split, extract, job.prefix)
    made = compile_generation(model, {"params": params}, shape, extract, config.generate)
    slots, new = cache_slots(extract.seq_len, config.generate.max_new_tokens), rows * made.call_tokens
    read, length = shape.prefill_rows.count, shape.prefill_length
    last = selected(read, shape.prompts_per_row)
    tapped = () if extract.positions is Positions.generated else taps
    wanted = Request(tapped, last if extract.positions is Positions.last else None, logits=True, logits_at=last)
    layers = whole_layers(arch, wanted, arch.layers, length)
    flops = step_flops(arch, layers, read, length), new * token_flops(arch, slots)
    stored = len(devices) * prefill_positions(extract) * position_bytes
    return [
        Program("prefill", made.prefill, flops[0], read * length, stored, layers),
        Program("decode", made.decode, flops[1], new, new * position_bytes, arch.layers, made.call_tokens),
    ]


def selected(rows: int, count: int) -> Any:
    """Returns the shape of the positions of each row that are wanted."""
    return jax.ShapeDtypeStruct((rows, count), jnp.int32)


def whole_layers(arch: Arch, wanted: Request, layers: int, positions: int) -> int:
    """Returns how many of the layers that run do so for all positions of a row: the last may not."""
    last = wanted.last_of_few(arch, positions)
    return layers if last is None else last


def memory(program: jax.stages.Compiled, cache: int) -> dict[str, int]:
    """Returns the bytes of a chip's memory by kind, of which `cache` are keys and values that stay between runs."""
    sizes = program.memory_analysis()
    assert sizes is not None
    kinds = {
        "weights and inputs": sizes.argument_size_in_bytes - sizes.alias_size_in_bytes,
        # Twice, as the results of the previous run are still on their way to the host.
        "results": 2 * (sizes.output_size_in_bytes - cache),
        "temporaries": sizes.temp_size_in_bytes,
        "program": sizes.generated_code_size_in_bytes,
    }
    kinds |= {"cache": cache} if cache else {}
    return kinds | {"total": sum(kinds.values())}


def memory_needed(error: str) -> int:
    """Returns the bytes that a program too big for a chip asked for; 0 where the compiler's message has no size."""
    match = re.search(r"Used ([\d.]+)([KMGT]) of|temporaries \(([\d.]+)([KMGT])\)", error)
    if match is None:
        return 0
    size, unit = (group for group in match.groups() if group is not None)
    return int(float(size) * 1024 ** ("KMGT".index(unit) + 1))


def layers_run(taps: tuple[Tap, ...]) -> int:
    """Returns how many decoder layers a step runs for these taps."""
    return max(
        0 if tap.site == "embed" else tap.layer if tap.site == "final_norm" else layers_needed(tap) for tap in taps
    )
