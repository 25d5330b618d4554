"""SAELens' side of `tools.sae_peers.losses` and `tools.sae_peers.curves`, run by its environment's interpreter."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.saes.gated_sae import GatedTrainingSAE, GatedTrainingSAEConfig
from sae_lens.saes.jumprelu_sae import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig
from sae_lens.saes.matryoshka_batchtopk_sae import (
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
)
from sae_lens.saes.sae import TrainStepInput
from sae_lens.saes.standard_sae import StandardTrainingSAE, StandardTrainingSAEConfig
from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.training.sae_trainer import SAETrainer

NAMES = {
    "encoder": "W_enc",
    "encoder_bias": "b_enc",
    "decoder": "W_dec",
    "decoder_bias": "b_dec",
    "gate_bias": "b_gate",
    "gate_scale": "r_mag",
}


def losses(file: str, out: str) -> None:
    """Writes the loss that SAELens computes for each architecture with the parameters and rows of `file`."""
    data = np.load(file)
    rows, dead = torch.tensor(data["rows"]), torch.tensor(data["dead"])
    sizes = {"d_in": rows.shape[1], "d_sae": len(dead), "device": "cpu", "dtype": "float32"}
    sparsity, auxiliary, k, bandwidth = (float(value) for value in data["coefficients"])
    k, groups = int(k), [int(end) for end in data["ends"]]
    made = {
        "relu": StandardTrainingSAE(StandardTrainingSAEConfig(**sizes)),
        "gated": GatedTrainingSAE(GatedTrainingSAEConfig(**sizes)),
        "topk": TopKTrainingSAE(TopKTrainingSAEConfig(**sizes, k=k, aux_loss_coefficient=auxiliary)),
        "batch_topk": BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**sizes, k=k, aux_loss_coefficient=auxiliary)),
        "matryoshka": MatryoshkaBatchTopKTrainingSAE(
            MatryoshkaBatchTopKTrainingSAEConfig(**sizes, k=k, aux_loss_coefficient=auxiliary, matryoshka_widths=groups)
        ),
        "jump_relu": JumpReLUTrainingSAE(JumpReLUTrainingSAEConfig(**sizes, jumprelu_bandwidth=bandwidth)),
    }
    results = {}
    for kind, sae in made.items():
        with torch.no_grad():
            for ours, name in NAMES.items():
                if kind == "gated" and ours == "encoder_bias":
                    name = "b_mag"
                if f"{kind}.{ours}" in data:
                    getattr(sae, name).copy_(torch.tensor(data[f"{kind}.{ours}"]))
            if kind == "jump_relu":
                sae.threshold.copy_(torch.tensor(np.exp(data["jump_relu.log_threshold"])))
        step = TrainStepInput(rows, {"l1": sparsity, "l0": sparsity}, dead, 0, False)
        output = sae.training_forward_pass(step)
        output.loss.backward()
        results[f"{kind}.loss"] = output.loss.item()
        results[f"{kind}.encoder_gradient"] = sae.W_enc.grad.numpy()
        results[f"{kind}.decoder_gradient"] = sae.W_dec.grad.numpy()
    np.savez(out, **results)


def train(folder: str, out: str) -> None:
    """Trains a TopK SAE on the rows of `folder` as its settings say, on a GPU where there is one; writes its curve."""
    place, device = Path(folder), "cuda" if torch.cuda.is_available() else "cpu"
    settings = json.loads((place / "settings.json").read_text())
    seen = torch.from_numpy(np.load(place / "seen.npy")).to(device) * settings["scale"]
    held_out = torch.from_numpy(np.load(place / "held_out.npy")).to(device) * settings["scale"]
    order, points = torch.from_numpy(np.load(place / "order.npy")).to(device), []
    torch.manual_seed(settings["seed"])
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(**settings["config"], device=device, dtype="float32"))
    with torch.no_grad():
        for ours, values in np.load(place / "initial.npz").items():
            getattr(sae, NAMES[ours]).copy_(torch.from_numpy(values))

    def batches() -> Iterator[torch.Tensor]:
        for step, batch in enumerate(order):
            if step % settings["every"] == 0:
                points.append((step, quality(sae, held_out)[0]))
            yield seen[batch]

    SAETrainer(cfg=SAETrainerConfig(**settings["trainer"], device=device), sae=sae, data_provider=batches()).fit()
    explained, l0, dead = quality(sae, held_out)
    points.append((len(order), explained))
    Path(out).write_text(json.dumps({"points": points, "l0": l0, "dead": dead}))


@torch.no_grad()
def quality(sae: TopKTrainingSAE, rows: torch.Tensor) -> tuple[float, float, float]:
    """Returns explained variance, L0 and the share of latents that are active on no row."""
    latents, _ = sae.encode_with_hidden_pre(rows)
    error, active = (rows - sae.decode(latents)).square().sum(), latents > 0
    explained = 1 - error / (rows - rows.mean(dim=0)).square().sum()
    return float(explained), float(active.sum(dim=1).float().mean()), float((~active.any(dim=0)).float().mean())


if __name__ == "__main__":
    {"losses": losses, "train": train}[sys.argv[1]](*sys.argv[2:])
