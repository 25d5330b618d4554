"""SAELens' CacheActivationsRunner: one run for each tap, equal contexts cut from all prompts in a row.

Prompts are not kept apart there: a context may begin within one and see the end of another. It has no last position of
a prompt. Its model is Hugging Face's, since TransformerLens below 4 knows models by their names on the hub only.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, load_from_disk
from sae_lens import CacheActivationsRunner, CacheActivationsRunnerConfig
from sae_lens.training.activations_store import ActivationsStore

from tools.bench.workloads.extraction import Options

CONTEXT, WIDTH = 128, 576


# begin: what a user writes
def load(options: Options):
    return options.model


def extract(model, prompts: list[list[int]], options: Options, out: Path) -> None:
    if options.positions != "all":
        raise NotImplementedError("no last position of a prompt")
    tokens = [*itertools.chain.from_iterable(prompts)]
    contexts = [tokens[start : start + CONTEXT] for start in range(0, len(tokens) - CONTEXT + 1, CONTEXT)]
    dataset = Dataset.from_dict({"input_ids": contexts})
    for layer in options.layers:
        settings = CacheActivationsRunnerConfig(
            dataset_path="prompts",
            model_name=model,
            model_class_name="AutoModelForCausalLM",
            model_batch_size=8,
            hook_name=f"model.layers.{layer}",
            d_in=WIDTH,
            context_size=CONTEXT,
            training_tokens=len(contexts) // 8 * 8 * CONTEXT,
            buffer_size_gb=8 * CONTEXT * WIDTH * 4 / 1e9,
            new_cached_activations_path=str(out / f"layer_{layer}"),
            device="cpu",
            prepend_bos=False,
            streaming=False,
            shuffle=False,
        )
        CacheActivationsRunner(settings, override_dataset=dataset).run()


# end


def stored(out: Path, layer: int) -> Iterator[np.ndarray]:
    """Yields the only context that sees the same as a prompt does: the first prompt's first tokens."""
    contexts = load_from_disk(str(out / f"layer_{layer}")).with_format("numpy")
    yield contexts[0][f"model.layers.{layer}"]


def places(prompts: list[list[int]]) -> list[int]:
    """Returns the positions, among all, whose vectors are compared."""
    return list(range(min(CONTEXT, len(prompts[0]))))


def vectors(prompts: list[list[int]]) -> int:
    """Returns the number of vectors in whole batches of 8 contexts."""
    return sum(map(len, prompts)) // CONTEXT // 8 * 8 * CONTEXT


def activations_store(cached: Path, batch: int, width: int) -> Iterator[torch.Tensor]:
    """Returns SAELens' reader of cached activations, with its mixing buffer of half the default size."""
    return ActivationsStore(
        model=None,
        dataset=None,
        cached_activations_path=str(cached),
        streaming=False,
        hook_name="blocks.12.hook_resid_post",
        hook_head_index=None,
        context_size=CONTEXT,
        d_in=width,
        n_batches_in_buffer=256,
        total_training_tokens=10**9,
        store_batch_size_prompts=32,
        train_batch_size_tokens=batch,
        prepend_bos=False,
        normalize_activations="none",
        device=torch.device("cpu"),
        dtype="float32",
    )
