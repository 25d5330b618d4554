"""nnsight: one trace per batch that saves the layers' outputs and stops, and torch.save."""

from pathlib import Path

import nnsight
import torch

from tools.bench.ways.batches import padded, saved
from tools.bench.workloads.extraction import Options

stored = saved


# begin: what a user writes
def load(options: Options):
    return nnsight.TransformersModel(
        options.model, task="text-generation", dispatch=True, dtype=torch.float32, device_map="cpu"
    )


def extract(model, prompts: list[list[int]], options: Options, out: Path) -> None:
    for number, (ids, mask) in enumerate(padded(prompts, options.torch_prompts)):
        with torch.no_grad(), model.trace(ids) as tracer:
            caught = nnsight.save({})
            for layer in options.layers:
                caught[layer] = model.model.layers[layer].output
            tracer.stop()
        last = mask.sum(1) - 1
        for layer, output in caught.items():
            hidden = output[0] if isinstance(output, tuple) else output
            rows = hidden[mask] if options.positions == "all" else hidden[torch.arange(len(ids)), last]
            torch.save(rows.to(torch.bfloat16), out / f"layer_{layer}_{number}.pt")


# end
