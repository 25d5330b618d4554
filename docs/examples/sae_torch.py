"""Trains a top-k sparse autoencoder in plain torch: `python docs/examples/sae_torch.py RUN_DIR --layer 12`."""

import argparse

import torch
from torch.utils.data import DataLoader

from pod_job.dataset import ActivationDataset, scaling


class SparseAutoencoder(torch.nn.Module):
    """Reconstructs vectors [batch, width] from the k largest latents of each."""

    def __init__(self, width: int, latents: int, k: int) -> None:
        super().__init__()
        self.k = k
        self.encoder = torch.nn.Linear(width, latents)
        self.decoder = torch.nn.Linear(latents, width)
        self.decoder.weight.data /= self.decoder.weight.data.norm(dim=0)
        self.encoder.weight.data = self.decoder.weight.data.T.clone()
        for layer in (self.encoder, self.decoder):
            layer.bias.data.zero_()

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        codes = torch.relu(self.encoder(vectors - self.decoder.bias))
        strongest = torch.topk(codes, self.k)
        return self.decoder(torch.zeros_like(codes).scatter(1, strongest.indices, strongest.values))


def unexplained(sae: SparseAutoencoder, vectors: torch.Tensor) -> torch.Tensor:
    """Returns the loss: the share of the variance that the reconstruction does not explain, 0 at best."""
    return (vectors - sae(vectors)).square().sum() / (vectors - vectors.mean(0)).square().sum()


def train(run_dir, layer, steps=500, batch_size=1024, latents=2048, k=32, learning_rate=1e-3, workers=2):
    """Returns the autoencoder and the variance that it explains of the last batch of training."""
    dataset = ActivationDataset(run_dir, layer, as_="torch", exclude=["sink"])
    scaled = scaling(dataset, centre=True)
    # The loader fetches one batch of rows at a time (`__getitems__`); `dataset.batches` reads larger blocks, faster.
    loader = DataLoader(dataset, batch_size, shuffle=True, drop_last=True, num_workers=workers)
    sae = SparseAutoencoder(dataset.shape[1], latents, k)
    optimizer = torch.optim.Adam(sae.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    done, loss = 0, torch.tensor(1.0)
    while done < steps:
        for vectors in loader:
            loss = unexplained(sae, scaled(vectors))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if done % 100 == 0:
                print(f"step {done}: {1 - loss.item():.3f} of the variance explained")
            done += 1
            if done == steps:
                break
    return sae, 1 - loss.item()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir")
    parser.add_argument("--layer", type=int, required=True)
    parser.add_argument("--steps", type=int, default=500)
    options = parser.parse_args()
    _, explained = train(options.run_dir, options.layer, options.steps)
    print(f"explained variance {explained:.3f} after {options.steps} steps")
