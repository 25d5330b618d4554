"""Trains with SAELens: `python docs/examples/sae_lens_sae.py RUN_DIR --layer 12 [--cached FOLDER]`.

Needs `pip install sae-lens==6.54.12`. Batches come from the run; with `--cached`, from SAELens' own ActivationsStore
over the folder that `pod-job export-sae-lens` wrote. No language model is loaded.
"""

import argparse
import itertools

import torch
from sae_lens import SAE, TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.config import SAETrainerConfig
from sae_lens.training.activations_store import ActivationsStore
from sae_lens.training.sae_trainer import SAETrainer

from pod_job.dataset import ActivationDataset, endless, scaling
from pod_job.export_sae_lens import hook_of


def cached_store(folder, hook_name, width, batch_size, context_size=128):
    """Returns SAELens' store over a folder of cached activations."""
    return ActivationsStore(
        model=None,
        dataset=None,
        cached_activations_path=folder,
        streaming=False,
        hook_name=hook_name,
        hook_head_index=None,
        context_size=context_size,
        d_in=width,
        n_batches_in_buffer=32,
        total_training_tokens=10**9,
        store_batch_size_prompts=8,
        train_batch_size_tokens=batch_size,
        prepend_bos=False,
        normalize_activations="expected_average_only_in",
        device=torch.device("cpu"),
        dtype="float32",
    )


def train(
    run_dir,
    layer,
    steps=500,
    batch_size=1024,
    latents=2048,
    k=32,
    learning_rate=1e-3,
    cached=None,
    save_dir="runs/sae/sae_lens",
):
    """Returns the share of a batch's variance that the trained autoencoder explains, as loaded from `save_dir`."""
    dataset = ActivationDataset(run_dir, layer, exclude=["sink"])
    width = dataset.shape[1]
    # SAELens would read a thousand batches to estimate this factor. The mean is left to the SAE's bias.
    scaled = scaling(dataset)
    if cached:
        hook_name = hook_of(dataset.tap, dataset.metadata.provenance.model.layers)
        batches = cached_store(cached, hook_name, width, batch_size)
    else:
        batches = (vectors.float() for vectors in endless(dataset, batch_size))
    first = next(batches)
    sae = TopKTrainingSAE(
        TopKTrainingSAEConfig(d_in=width, d_sae=latents, k=k, normalize_activations="expected_average_only_in")
    )
    sae.b_dec.data = scaled.factor * first.mean(0)
    settings = SAETrainerConfig(
        total_training_samples=steps * batch_size,
        train_batch_size_samples=batch_size,
        lr=learning_rate,
        lr_end=learning_rate / 10,
    )
    trainer = SAETrainer(settings, sae, itertools.chain([first], batches))
    trainer.activation_scaler.scaling_factor = scaled.factor
    trainer.fit()  # folds the factor into the weights at the end
    sae.save_inference_model(save_dir)
    vectors = next(dataset.batches(batch_size, seed=1, as_="torch")).float()
    with torch.no_grad():
        residual = vectors - SAE.load_from_disk(save_dir)(vectors)
    return 1 - float(residual.square().sum() / (vectors - vectors.mean(0)).square().sum())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir")
    parser.add_argument("--layer", type=int, required=True)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--cached", metavar="FOLDER")
    options = parser.parse_args()
    explained = train(options.run_dir, options.layer, options.steps, cached=options.cached)
    print(f"explained variance {explained:.3f} after {options.steps} steps")
