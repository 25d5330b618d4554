"""Trains with EleutherAI's sparsify: `python docs/examples/sparsify_sae.py RUN_DIR --layer 12`.

Needs `pip install eai-sparsify==1.3.3`. Its Trainer feeds token ids to a language model and hooks a layer. Here the run
takes the place of the model: the ids are row numbers, and the one layer returns the vectors of those rows.
"""

import argparse
from types import SimpleNamespace

import torch
from sparsify import SaeConfig, SparseCoder, TrainConfig, Trainer

from pod_job.dataset import ActivationDataset, endless, scaling


class StoredRows(torch.nn.Module):
    """The parts of a language model that sparsify's Trainer uses: one layer, whose output is read from the run."""

    def __init__(self, dataset, scaled):
        super().__init__()
        self.run = StoredLayer(dataset, scaled)
        self.device = torch.device("cpu")
        self.config = SimpleNamespace(num_hidden_layers=1)
        self.dummy_inputs = {"input_ids": torch.zeros(1, 1, dtype=torch.long)}

    @property
    def base_model(self):
        return self

    def forward(self, input_ids):
        return self.run(input_ids)


class StoredLayer(torch.nn.Module):
    """Returns the scaled vectors of the rows whose numbers it gets as token ids."""

    def __init__(self, dataset, scaled):
        super().__init__()
        self.dataset, self.scaled = dataset, scaled

    def forward(self, input_ids):
        return self.scaled(self.dataset[input_ids.flatten().numpy()]).reshape(*input_ids.shape, -1)


def row_numbers(dataset, batch_size, steps):
    """Returns one sample per batch: the shuffled row numbers of a batch of `dataset.batches`."""
    numbers, epoch = [], 0
    while len(numbers) < steps:
        batches = dataset.batches(batch_size, epoch=epoch, with_index=True, drop_last=True)
        numbers += [{"input_ids": torch.from_numpy(rows)} for _, rows in batches]
        epoch += 1
    return numbers[:steps]


def train(
    run_dir, layer, steps=500, batch_size=1024, latents=2048, k=32, learning_rate=1e-3, save_dir="runs/sae/sparsify"
):
    """Returns the share of a batch's variance that the trained coder explains, as loaded from `save_dir`."""
    dataset = ActivationDataset(run_dir, layer, as_="torch", exclude=["sink"])
    scaled = scaling(dataset)
    settings = TrainConfig(
        SaeConfig(num_latents=latents, k=k),
        batch_size=1,
        hookpoints=["run"],
        optimizer="adam",
        lr=learning_rate,
        lr_warmup_steps=min(50, steps // 4),
        save_dir=save_dir,
        run_name=f"layer_{layer}",
        log_to_wandb=False,
    )
    Trainer(settings, row_numbers(dataset, batch_size, steps), StoredRows(dataset, scaled)).fit()
    coder = SparseCoder.load_from_disk(f"{save_dir}/layer_{layer}/run")
    with torch.no_grad():
        return 1 - float(coder(next(endless(dataset, batch_size, seed=1, scaled=scaled))).fvu)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir")
    parser.add_argument("--layer", type=int, required=True)
    parser.add_argument("--steps", type=int, default=500)
    options = parser.parse_args()
    explained = train(options.run_dir, options.layer, options.steps)
    print(f"explained variance {explained:.3f} after {options.steps} steps")
