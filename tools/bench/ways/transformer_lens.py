"""TransformerLens: run_with_cache with a filter of names, stopped after the last layer, and torch.save."""

from pathlib import Path

import torch
from transformer_lens.model_bridge import TransformerBridge

from tools.bench.ways.batches import padded, saved
from tools.bench.workloads.extraction import Options

stored = saved


# begin: what a user writes
def load(options: Options):
    return TransformerBridge.boot_transformers(options.model, device="cpu", dtype=torch.float32)


def extract(model, prompts: list[list[int]], options: Options, out: Path) -> None:
    names = {layer: f"blocks.{layer}.hook_out" for layer in options.layers}
    for number, (ids, mask) in enumerate(padded(prompts, options.torch_prompts)):
        with torch.no_grad():
            _, cache = model.run_with_cache(
                ids, names_filter=list(names.values()), stop_at_layer=options.layers[-1] + 1, return_cache_object=False
            )
        last = mask.sum(1) - 1
        for layer, name in names.items():
            hidden = cache[name]
            rows = hidden[mask] if options.positions == "all" else hidden[torch.arange(len(ids)), last]
            torch.save(rows.to(torch.bfloat16), out / f"layer_{layer}_{number}.pt")


# end
