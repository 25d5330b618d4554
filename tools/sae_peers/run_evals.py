"""Runs SAELens' evaluator on FOLDER/sae and FOLDER/tokens.npy with the model at MODEL; for the peers' environment."""

# pyright: reportMissingImports=false
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from sae_lens import SAE
from sae_lens.evals import EvalConfig, run_evals
from sae_lens.load_model import load_model
from sae_lens.training.activation_scaler import ActivationScaler

folder, path, layer = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
tokens = torch.from_numpy(np.load(folder / "tokens.npy").astype(np.int64))
sae = SAE.load_from_disk(folder / "sae")
sae.cfg.metadata.hook_name = f"model.layers.{layer}"
model = load_model("AutoModelForCausalLM", path, device="cpu", model_from_pretrained_kwargs={"dtype": torch.float32})
store = SimpleNamespace(
    get_batch_tokens=lambda size: tokens,
    reset_input_dataset=lambda: None,
    store_batch_size_prompts=len(tokens),
    context_size=tokens.shape[1],
)
config = EvalConfig(
    batch_size_prompts=len(tokens),
    n_eval_reconstruction_batches=1,
    n_eval_sparsity_variance_batches=1,
    compute_ce_loss=True,
    compute_sparsity_metrics=True,
    compute_variance_metrics=True,
    compute_featurewise_density_statistics=True,
)
scalars, features = run_evals(sae, store, model, ActivationScaler(), eval_config=config, exclude_special_tokens=False)
quality, loss = scalars["reconstruction_quality"], scalars["model_performance_preservation"]
print(
    json.dumps(
        {
            "l0": scalars["sparsity"]["l0"],
            "mse": quality["mse"],
            "explained_variance": quality["explained_variance"],
            "cosine": quality["cossim"],
            "recovered": loss["ce_loss_score"],
            "dead": float(np.mean(np.array(features["feature_density"]) == 0)),
            "loss of model": loss["ce_loss_without_sae"],
            "loss of spliced": loss["ce_loss_with_sae"],
            "loss of zeros": loss["ce_loss_with_ablation"],
        }
    )
)
