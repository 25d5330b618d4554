"""Model on the mesh and compiled programs of a job's mode."""

import logging
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from pod_job.checking.gate_prompts import gate_prompts
from pod_job.checking.parity import check_parity
from pod_job.checking.short_rows import short_rows
from pod_job.checking.trial import try_program
from pod_job.checkpoints.checkpoint import in_bfloat16, unread
from pod_job.checkpoints.load import load_params
from pod_job.config.generate import Mode
from pod_job.extraction.feeding import Feeding, feeding
from pod_job.extraction.pipeline import FirstStep
from pod_job.extraction.step import Step, compile_step
from pod_job.generation.completions import Ending
from pod_job.generation.decoding import compile_generation
from pod_job.generation.generator import Generator
from pod_job.generation.shape import shape_for
from pod_job.host.compile_cache import compile_cache
from pod_job.host.rendezvous import Host
from pod_job.models.decoder import Decoder, Params
from pod_job.models.mesh import placement, weight_shardings
from pod_job.models.sharding import sharding_line
from pod_job.models.upper_halves import kept_as_halves, upper_halves
from pod_job.planning.inputs import Inputs

log = logging.getLogger("pod_job")


def load_model(inputs: Inputs, mesh: Mesh) -> tuple[Decoder, Params]:
    """Returns the model as it lies on the mesh, and its weights there."""
    config = inputs.config
    log.info("%s", sharding_line(inputs.table, config.mesh, config.sharding))
    if names := unread(inputs.checkpoint, inputs.table):
        log.info("left unread in the checkpoint: %s", ", ".join(names))
    dtype, shardings = jnp.dtype(config.model.dtype.value), weight_shardings(mesh, config.sharding, inputs.table)
    where = placement(mesh, config.sharding, shardings, config.model.kernels)
    halves: list[str] = []
    if config.mode is Mode.generate and dtype == jnp.float32:
        halves = sorted(kept_as_halves(inputs.arch, where, in_bfloat16(inputs.checkpoint, inputs.table)))
    rest = {name: weight for name, weight in inputs.table.items() if name not in halves}
    params = load_params(inputs.checkpoint, rest, dtype, shardings)["params"]
    if halves:
        short = load_params(inputs.checkpoint, {name: inputs.table[name] for name in halves}, jnp.bfloat16, shardings)
        params |= {name: upper_halves(short["params"].pop(name)) for name in halves}
    return Decoder(inputs.arch, inputs.taps, dtype, where), {"params": params}


def compile_program(inputs: Inputs, model: Decoder, params: Params, part: Feeding) -> Step | Generator:
    """Returns what computes the run's vectors: the packed step, or with mode=generate prefill and decode."""
    config = inputs.config
    with compile_cache(config.storage.compile_cache):
        if config.mode is not Mode.generate:
            return Step(compile_step(model, params, part.rows, config.extract), params, part, config.extract.positions)
        ending = Ending(config.generate, inputs.end_tokens, inputs.tokenizer)
        shape = shape_for(part.rows, config.extract, len(inputs.prefix))
        programs = compile_generation(model, params, shape, config.extract, config.generate)
        prefill = feeding(shape.prefill_rows, jax.process_index())
        generator = Generator(programs, params, part, prefill, ending, config.extract.positions)
        if not inputs.prefix:
            return generator
        log.info("the first %d tokens of prompts that begin alike are computed once", len(inputs.prefix))
        return generator.with_prefix(np.array(inputs.prefix, np.int32))


def pass_gate(inputs: Inputs, host: Host, program: Step | Generator, model: Decoder, part: Feeding) -> FirstStep | None:
    """Compares vectors with the reference, unless parity.samples=0; returns what the first step is held against.

    None where that was compared itself.

    Raises:
        JobError: the vectors would be wrong.
    """
    if not inputs.config.parity.samples:
        return None
    extract = inputs.config.extract
    with_host_0 = part.feeder == feeding(part.rows, 0).feeder
    with compile_cache(inputs.config.storage.compile_cache):
        short = short_rows(program, model, inputs, gate_prompts(inputs)) if isinstance(program, Step) else None
    if short is None:
        check_parity(inputs, host, partial(try_program, program, extract), with_host_0)
        return None
    tried = partial(try_program, short.step, short.extract)
    result = check_parity(inputs, host, tried, with_host_0, short.extract.seq_len)
    return partial(short.hold, parity=result)
