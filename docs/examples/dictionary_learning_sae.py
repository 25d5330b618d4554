"""dictionary_learning's top-k trainer on a run: `python docs/examples/dictionary_learning_sae.py RUN_DIR --layer 12`.

`pip install dictionary-learning==0.1.0` (and not torchvision, unless torch's build matches it).
"""

import argparse

import torch
from dictionary_learning.trainers.top_k import AutoEncoderTopK, TopKTrainer
from dictionary_learning.training import trainSAE

from pod_job.reading.dataset import ActivationDataset
from pod_job.reading.scaling import endless, scaling


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
    """Trains, and returns the variance that the saved autoencoder explains of a batch."""
    dataset = ActivationDataset(run_dir, layer, exclude=["sink"])
    # What normalize_activations=True would measure on 100 batches.
    scaled = scaling(dataset, mean_squared_norm=1)
    width = dataset.shape[1]
    config = {
        "trainer": TopKTrainer,
        "dict_class": AutoEncoderTopK,
        "activation_dim": width,
        "dict_size": latents,
        "k": k,
        "layer": layer,
        "lm_name": dataset.metadata["model_name"],
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
