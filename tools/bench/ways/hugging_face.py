"""Hugging Face torch with forward hooks, stopped after the last of them, and torch.save."""

import contextlib
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from tools.bench.ways.batches import padded, saved
from tools.bench.workloads.extraction import Options

stored = saved


class Enough(Exception):
    """Signal of the last hook that the rest of the forward pass is not needed."""


# begin: what a user writes
def load(options: Options):
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=getattr(torch, options.dtype))
    return model.eval().to(options.torch_device)


def extract(model, prompts: list[list[int]], options: Options, out: Path | None) -> None:
    caught = {}

    def hook(layer):
        def keep(module, arguments, output):
            caught[layer] = output[0] if isinstance(output, tuple) else output
            if layer == options.layers[-1]:
                raise Enough

        return keep

    handles = [model.model.layers[layer].register_forward_hook(hook(layer)) for layer in options.layers]
    for number, (ids, mask) in enumerate(padded(prompts, options.torch_prompts)):
        with torch.no_grad(), contextlib.suppress(Enough):
            model.model(input_ids=ids.to(model.device), use_cache=False)
        last = mask.sum(1) - 1
        for layer, hidden in caught.items() if out else ():
            rows = hidden[mask.to(model.device)] if options.positions == "all" else hidden[torch.arange(len(ids)), last]
            torch.save(rows.to(getattr(torch, options.stored)).cpu(), out / f"layer_{layer}_{number}.pt")
    for handle in handles:
        handle.remove()
    if options.device == "gpu":
        torch.cuda.synchronize()


# end


def filled(prompts: list[list[int]], options: Options) -> float:
    """Returns the share of positions that are tokens."""
    return sum(map(len, prompts)) / sum(mask.numel() for _, mask in padded(prompts, options.torch_prompts))
