"""Prompts as right-padded batches for torch, and the vectors that were saved of them.

A causal model needs no mask then: no token sees what comes after it.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

PROMPTS_PER_BATCH = 4


def padded(prompts: list[list[int]]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Token ids [B, S] and which of them are tokens of a prompt."""
    for start in range(0, len(prompts), PROMPTS_PER_BATCH):
        chosen = prompts[start : start + PROMPTS_PER_BATCH]
        ids = torch.zeros(len(chosen), max(map(len, chosen)), dtype=torch.long)
        mask = torch.zeros_like(ids, dtype=torch.bool)
        for row, prompt in enumerate(chosen):
            ids[row, : len(prompt)] = torch.tensor(prompt)
            mask[row, : len(prompt)] = True
        yield ids, mask


def saved(out: Path, layer: int) -> np.ndarray:
    """The vectors of `layer_{layer}_{batch}.pt`, prompt by prompt."""
    files = sorted(out.glob(f"layer_{layer}_*.pt"), key=lambda file: int(file.stem.rpartition("_")[2]))
    return torch.cat([torch.load(file) for file in files]).float().numpy()
