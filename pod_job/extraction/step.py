"""The step: one compiled forward pass over a static number of packed rows, and its way to and from the devices.

B rows of all hosts, R rows of one feeder, S positions, M prompts of a row at most.
"""

from dataclasses import dataclass
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, Shaped

from pod_job.config.schema import ExtractConfig, Positions
from pod_job.extraction.feeding import Feeding, StepRows
from pod_job.extraction.packing import StepInput
from pod_job.extraction.quantize import as_stored
from pod_job.extraction.transfer import put_rows
from pod_job.formats.safetensors import DTYPE_OF
from pod_job.models.decoder import Decoder, Means, Output, Params
from pod_job.models.token_facts import TokenFacts


class StepOutput(NamedTuple):
    """Result of a step on the devices.

    Attributes:
        activations: {tap name: [B, M or S, width]} as `as_stored` gives it, split like the rows.
        facts: {column: [B, M or S]} of the same positions, in float32.
        more: whether any feeder's `more` was true: the only thing that hosts exchange in a step.
    """

    activations: dict[str, Shaped[Array, "B _ _"]]
    facts: dict[str, Float[Array, "B _"]]
    more: Int[Array, ""]


def compile_step(model: Decoder, params: Params, rows: StepRows, config: ExtractConfig) -> jax.stages.Compiled:
    """Compiles the step for the one shape that every step has: `rows.count` rows of `config.seq_len`.

    The program takes (params, token_ids, segment_ids, positions, select, more), the arrays split by `rows`, and returns
    a StepOutput. `select` is `chosen` of StepInput, or `counted` with positions=mean.
    """

    averaged = config.positions is Positions.mean

    def step(
        params: Params,
        token_ids: Int[Array, "B S"],
        segment_ids: Int[Array, "B S"],
        positions: Int[Array, "B S"],
        select: Int[Array, "B _"],
        more: Int[Array, " B"],
    ) -> StepOutput:
        chosen = select if config.positions in (Positions.last, Positions.first) else None
        facts = {}
        if config.token_facts:
            scored = model.apply(
                params, token_ids, positions=positions, segment_ids=segment_ids, select=chosen, method="score"
            )
            output, of_tokens = cast(tuple[Output, TokenFacts], scored)
            facts = {name: getattr(of_tokens, name) for name in config.token_facts}
        else:
            means = Means(segment_ids * select, config.prompts_per_row) if averaged else None
            applied = model.apply(
                params,
                token_ids,
                positions=positions,
                segment_ids=segment_ids,
                select=chosen if means is None else means,
                return_activations=True,
                return_logits=False,
            )
            output = cast(Output, applied)
        stored = DTYPE_OF[config.dtype.value]
        taps = {name: as_stored(value, stored) for name, value in output.activations.items()}
        return StepOutput(taps, facts, jnp.max(more))

    def argument(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows.count, *shape), jnp.int32, sharding=rows.sharding)

    everywhere = NamedSharding(rows.sharding.mesh, PartitionSpec())
    taps, facts = (dict.fromkeys(names, rows.sharding) for names in ([t.name for t in model.taps], config.token_facts))
    shardings = StepOutput(taps, facts, everywhere)  # type: ignore[arg-type]
    jitted = jax.jit(step, out_shardings=shardings)
    tokens, select = argument(config.seq_len), argument(config.seq_len if averaged else config.prompts_per_row)
    return jitted.lower(params, tokens, tokens, tokens, select, argument()).compile(model.placement.compiler_options)


@dataclass(frozen=True)
class Step:
    """The compiled step, the weights it runs on, and this host's part in feeding it."""

    compiled: jax.stages.Compiled
    params: Params
    feeding: Feeding
    positions: Positions

    def __call__(self, item: StepInput, more: bool) -> StepOutput:
        """Starts a step on the devices; `more`: this host's feeder has a step two further on."""
        flags = np.full(len(item.token_ids), more, np.int32)
        select = item.counted if self.positions is Positions.mean else item.chosen
        arrays = (item.token_ids, item.segment_ids, item.positions, select, flags)
        return self.compiled(self.params, *put_rows(arrays, self.feeding))
