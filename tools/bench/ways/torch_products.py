"""Bare products of a step's positions with each matrix of a layer, as torch's Linear does them."""

from collections.abc import Callable
from pathlib import Path

import torch

from tools.bench.ways.jax_products import amount, product_sizes
from tools.bench.workloads.extraction import SEQ_LEN, Options

__all__ = ["amount", "prepare"]


def prepare(options: Options, tasks: Path, out: None) -> Callable[[], None]:
    sizes, kind, device = product_sizes(options), getattr(torch, options.dtype), options.torch_device
    x = {inputs: torch.ones(options.rows * SEQ_LEN, inputs, dtype=kind, device=device) for inputs, _ in sizes}
    weights = [torch.ones(outputs, inputs, dtype=kind, device=device) for inputs, outputs in sizes]

    def run() -> None:
        for weight in weights:
            torch.nn.functional.linear(x[weight.shape[1]], weight)
        if options.device == "gpu":
            torch.cuda.synchronize()

    return run
