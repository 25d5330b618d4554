"""Bare products of a step's positions with each matrix of a layer: the most that jax can do on this machine."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp

from pod_job.models.arch import read_arch_file
from pod_job.models.weight_table import weight_table
from pod_job.planning.model_cost import layer_flops
from tools.bench.workloads.extraction import SEQ_LEN, Options


def product_sizes(options: Options) -> list[tuple[int, int]]:
    """Returns (inputs, outputs) of a layer's matrices."""
    table = weight_table(read_arch_file(Path(options.model) / "config.json"))
    weights = (weight for weight in table.values() if weight.stacked and weight.linear)
    return [(inputs, outputs) for outputs, inputs in (weight.checkpoint_shape for weight in weights)]


def amount(options: Options) -> float:
    """Returns how many tokens' products up to the last tap these are."""
    one_layer = layer_flops(read_arch_file(Path(options.model) / "config.json"))
    return options.rows * SEQ_LEN * one_layer / options.token_flop


def prepare(options: Options, tasks: Path, out: None) -> Callable[[], None]:
    sizes = product_sizes(options)
    x = {inputs: jnp.ones((options.rows * SEQ_LEN, inputs), options.dtype) for inputs, _ in sizes}
    weights = [jnp.ones(size, options.dtype) for size in sizes]

    @jax.jit
    def multiply(x: dict[int, jax.Array], weights: list[jax.Array]) -> list[jax.Array]:
        return [x[len(weight)] @ weight for weight in weights]

    return lambda: jax.block_until_ready(multiply(x, weights)) and None
