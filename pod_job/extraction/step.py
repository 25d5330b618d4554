"""The step: one compiled forward pass over a static number of packed rows, and its way to and from the devices.

B rows of all hosts, R rows of one feeder, S positions, M selected positions of a row.
"""

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from pod_job.config.schema import ExtractConfig, Positions
from pod_job.extraction.feeding import Feeding
from pod_job.extraction.packing import StepInput
from pod_job.extraction.quantize import as_stored
from pod_job.extraction.transfer import spread
from pod_job.formats.safetensors import DTYPE_OF
from pod_job.models.decoder import Decoder, Output

StepOutput = tuple[dict[str, Array], Array]
Step = Callable[..., StepOutput]


def compile_step(
    model: Decoder, params: Any, mesh: Mesh, rows: NamedSharding, global_rows: int, config: ExtractConfig
) -> jax.stages.Compiled:
    """The program of a step, for the one shape that every step has: `global_rows` rows of `config.seq_len`.

    It takes (params, token_ids, segment_ids, positions, last, more), the arrays split by `rows`, and gives
    ({tap name: [B, M or S, width] as `as_stored` gives it, split by `rows`}, more), where the second `more` is whether
    any feeder's was true: the only thing that hosts tell each other in a step.
    """

    def step(
        params: Any,
        token_ids: Int[Array, "B S"],
        segment_ids: Int[Array, "B S"],
        positions: Int[Array, "B S"],
        last: Int[Array, "B M"],
        more: Int[Array, " B"],
    ) -> StepOutput:
        output = model.apply(
            params,
            token_ids,
            positions=positions,
            segment_ids=segment_ids,
            select=last if config.positions is Positions.last else None,
            return_activations=True,
            return_logits=False,
        )
        activations = cast(Output, output).activations
        stored = DTYPE_OF[config.dtype.value]
        return {name: as_stored(value, stored) for name, value in activations.items()}, jnp.max(more)

    def argument(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((global_rows, *shape), jnp.int32, sharding=rows)

    taps = {tap.name: rows for tap in model.taps}
    jitted = jax.jit(step, out_shardings=(taps, NamedSharding(mesh, PartitionSpec())))
    tokens, slots = argument(config.seq_len), argument(config.prompts_per_row)
    return jitted.lower(params, tokens, tokens, tokens, slots, argument()).compile(model.placement.compiler_options)


def place(item: StepInput, more: bool, rows: NamedSharding, feeding: Feeding) -> tuple[Array, ...]:
    """This host's part of a step's inputs, as global arrays split by `rows`."""
    flags = np.full(item.token_ids.shape[0], more, np.int32)
    return spread((item.token_ids, item.segment_ids, item.positions, item.last, flags), rows, feeding)
