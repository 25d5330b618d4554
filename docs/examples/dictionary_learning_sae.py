"""Trains dictionary_learning's top-k SAE: `python docs/examples/dictionary_learning_sae.py RUN_DIR --layer 12`.

Needs `pip install dictionary-learning==0.1.0`; uninstall the torchvision that comes with it unless it matches torch.
"""

import argparse

import torch
from dictionary_learning.trainers.top_k import AutoEncoderTopK, TopKTrainer
from dictionary_learning.training import trainSAE

from pod_job.dataset import ActivationDataset, endless, scaling


def train(
    run_dir,
    layer,
    steps=500,
    batch_size=1024,
    latents=2048,
    k=32,
    learning_rate=1e-3,
    save_dir="runs/sae/dictionary_learning",
):
    """Returns the share of a batch's variance that the trained autoencoder explains, as loaded from `save_dir`."""
    dataset = ActivationDataset(run_dir, layer, exclude=["sink"])
    # normalize_activations=True would estimate the same factor from 100 batches.
    scaled = scaling(dataset, mean_squared_norm=1)
    width = dataset.shape[1]
    config = {
        "trainer": TopKTrainer,
        "dict_class": AutoEncoderTopK,
        "activation_dim": width,
        "dict_size": latents,
        "k": k,
        "layer": layer,
        "lm_name": dataset.metadata.model_name,
        "steps": steps,
        "warmup_steps": min(50, steps // 4),
        "lr": learning_rate,
        "device": "cpu",
        "seed": 0,
    }
    trainSAE(endless(dataset, batch_size, scaled=scaled), [config], steps=steps, save_dir=save_dir, device="cpu")
    sae = AutoEncoderTopK.from_pretrained(f"{save_dir}/trainer_0/ae.pt", k=k, device="cpu")
    vectors = scaled(next(dataset.batches(batch_size, seed=1, as_="torch")))
    with torch.no_grad():
        residual = vectors - sae(vectors)
    return 1 - float(residual.square().sum() / (vectors - vectors.mean(0)).square().sum())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir")
    parser.add_argument("--layer", type=int, required=True)
    parser.add_argument("--steps", type=int, default=500)
    options = parser.parse_args()
    explained = train(options.run_dir, options.layer, options.steps)
    print(f"explained variance {explained:.3f} after {options.steps} steps")
