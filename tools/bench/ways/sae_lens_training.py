"""SAELens' side of `tools.sae_parity`, run by its environment's interpreter: losses of its classes, or a training."""

import sys

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


def train(file: str, out: str) -> None:
    """Trains a TopK SAE on the batches of `file` and writes its parameters, its decoder's norms folded in."""
    data = np.load(file)
    batches, settings = torch.tensor(data["batches"]), {name: float(data[name]) for name in ("lr", "auxiliary")}
    count, rows, width = len(data["order"]), int(data["rows_per_batch"]), batches.shape[1]
    torch.manual_seed(0)
    sae = TopKTrainingSAE(
        TopKTrainingSAEConfig(
            d_in=width,
            d_sae=int(data["latents"]),
            k=int(data["k"]),
            aux_loss_coefficient=settings["auxiliary"],
            device="cpu",
            dtype="float32",
        )
    )
    trainer = SAETrainer(
        cfg=SAETrainerConfig(
            total_training_samples=count,
            train_batch_size_samples=rows,
            lr=settings["lr"],
            lr_end=settings["lr"],
            lr_warm_up_steps=int(data["warm_up_steps"]),
            lr_decay_steps=int(data["decay_steps"]),
        ),
        sae=sae,
        data_provider=(batches[part] for part in torch.tensor(data["order"]).reshape(-1, rows)),
    )
    trainer.fit()
    state = {name: value.detach().clone() for name, value in sae.state_dict().items()}
    sae.process_state_dict_for_saving_inference(state)
    np.savez(out, **{ours: state[name].numpy() for ours, name in NAMES.items() if name in state})


if __name__ == "__main__":
    {"losses": losses, "train": train}[sys.argv[1]](*sys.argv[2:])
