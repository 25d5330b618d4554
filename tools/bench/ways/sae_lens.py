"""SAELens' CacheActivationsRunner: one run for each tap, equal contexts cut from all prompts in a row.

Prompts are not kept apart there: a context may begin within one and see the end of another. It has no last position of
a prompt. Its model is Hugging Face's, since TransformerLens below 4 knows models by their names on the hub only.
"""

import itertools
from pathlib import Path

import numpy as np
from datasets import Dataset, load_from_disk
from sae_lens import CacheActivationsRunner, CacheActivationsRunnerConfig

CONTEXT, WIDTH = 128, 576


# begin: what a user writes
def load(model_dir: str):
    return model_dir


def extract(model, prompts: list[list[int]], layers: list[int], positions: str, out: Path) -> None:
    if positions != "all":
        raise NotImplementedError("no last position of a prompt")
    tokens = [*itertools.chain.from_iterable(prompts)]
    contexts = [tokens[start : start + CONTEXT] for start in range(0, len(tokens) - CONTEXT + 1, CONTEXT)]
    dataset = Dataset.from_dict({"input_ids": contexts})
    for layer in layers:
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


def stored(out: Path, layer: int) -> np.ndarray:
    """What lies in the first contexts that see the same as the prompt does: of the first prompt's first tokens."""
    contexts = load_from_disk(str(out / f"layer_{layer}")).with_format("numpy")
    return contexts[0][f"model.layers.{layer}"]


def places(prompts: list[list[int]]) -> list[int]:
    return list(range(min(CONTEXT, len(prompts[0]))))


def vectors(prompts: list[list[int]]) -> int:
    """Whole batches of 8 contexts."""
    return sum(map(len, prompts)) // CONTEXT // 8 * 8 * CONTEXT
