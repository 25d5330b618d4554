"""Hugging Face torch with forward hooks, stopped after the last of them, and torch.save."""

import contextlib
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from tools.bench.ways.batches import padded, saved


class Enough(Exception):
    """Raised by the last hook: nothing after it is wanted."""


# begin: what a user writes
def load(model_dir: str):
    return AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()


def extract(model, prompts: list[list[int]], layers: list[int], positions: str, out: Path) -> None:
    caught = {}

    def hook(layer):
        def keep(module, arguments, output):
            caught[layer] = output[0] if isinstance(output, tuple) else output
            if layer == layers[-1]:
                raise Enough

        return keep

    handles = [model.model.layers[layer].register_forward_hook(hook(layer)) for layer in layers]
    for number, (ids, mask) in enumerate(padded(prompts)):
        with torch.no_grad(), contextlib.suppress(Enough):
            model.model(input_ids=ids, use_cache=False)
        last = mask.sum(1) - 1
        for layer, hidden in caught.items():
            rows = hidden[mask] if positions == "all" else hidden[torch.arange(len(ids)), last]
            torch.save(rows.to(torch.bfloat16), out / f"layer_{layer}_{number}.pt")
    for handle in handles:
        handle.remove()


# end


def stored(out: Path, layer: int) -> np.ndarray:
    return saved(out, layer)
