"""Prompts as right-padded batches for torch, and the vectors that were saved of them.

A causal model needs no mask then: no token sees what comes after it.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch


def padded(prompts: list[list[int]], size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yields token ids [B, S] and which of them are tokens of a prompt."""
    for start in range(0, len(prompts), size):
        chosen = prompts[start : start + size]
        ids = torch.zeros(len(chosen), max(map(len, chosen)), dtype=torch.long)
        mask = torch.zeros_like(ids, dtype=torch.bool)
        for row, prompt in enumerate(chosen):
            ids[row, : len(prompt)] = torch.tensor(prompt)
            mask[row, : len(prompt)] = True
        yield ids, mask


def saved(out: Path, layer: int) -> Iterator[np.ndarray]:
    """Yields the vectors of each `layer_{layer}_{batch}.pt`, prompt by prompt."""
    for file in sorted(out.glob(f"layer_{layer}_*.pt"), key=lambda file: int(file.stem.rpartition("_")[2])):
        yield torch.load(file).float().numpy()
