"""The extraction document's own way: a full forward pass for each new token, pickled lists of dictionaries.

Every position by its own pass over all that precedes it; timed on every 64th position from the 32nd, which gives the
same average.
"""

import itertools
import pickle
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from tools.bench.workloads.extraction import Options

EVERY = 64


# begin: what a user writes
def load(options: Options):
    return AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()


def extract(model, prompts: list[list[int]], options: Options, out: Path) -> None:
    vectors = {layer: [] for layer in options.layers}
    for number, prompt in enumerate(prompts):
        lengths = range(EVERY // 2, len(prompt) + 1, EVERY) if options.positions == "all" else [len(prompt)]
        for length in lengths:
            with torch.no_grad():
                ids = torch.tensor([prompt[:length]])
                states = model(ids, output_hidden_states=True, use_cache=False).hidden_states
            for layer in options.layers:
                item = {"task_id": f"task_{number}", "sample_idx": 0, "timestamp": datetime.now().isoformat()}
                vectors[layer].append({**item, "activation": states[layer + 1][0, -1].numpy()})
    for layer, items in vectors.items():
        with open(out / f"layer_{layer}_batch_000001.pkl", "wb") as file:
            pickle.dump({"layer": layer, "activations": items}, file)


# end


def stored(out: Path, layer: int) -> Iterator[np.ndarray]:
    with open(out / f"layer_{layer}_batch_000001.pkl", "rb") as file:
        yield np.stack([item["activation"] for item in pickle.load(file)["activations"]])


def places(prompts: list[list[int]]) -> list[int]:
    """Returns the positions that are timed, among those of all prompts in a row."""
    starts = itertools.accumulate(map(len, prompts), initial=0)
    return [
        start + last
        for start, prompt in zip(starts, prompts, strict=False)
        for last in range(EVERY // 2 - 1, len(prompt), EVERY)
    ]
