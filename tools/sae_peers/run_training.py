"""Trains an SAE with SAELens' runner, from text: `run_training.py TRIAL TOKENS`, TRIAL as JSON; for the environment."""

# pyright: reportMissingImports=false
import json
import sys

from datasets import Dataset
from sae_lens import LanguageModelSAERunnerConfig, LanguageModelSAETrainingRunner, LoggingConfig
from sae_lens.saes.topk_sae import TopKTrainingSAEConfig

trial, tokens = json.loads(sys.argv[1]), int(sys.argv[2])
with open(trial["documents"]) as file:
    documents = Dataset.from_dict({"text": [json.loads(line)["text"] for line in file]})
config = LanguageModelSAERunnerConfig(
    sae=TopKTrainingSAEConfig(d_in=576, d_sae=trial["latents"], k=trial["k"], device="cpu", dtype="float32"),
    model_name=trial["model"],
    model_class_name="AutoModelForCausalLM",
    hook_name=f"model.layers.{trial['layer']}",
    dataset_path="",
    is_dataset_tokenized=False,
    context_size=trial["context"],
    training_tokens=tokens,
    store_batch_size_prompts=trial["prompts"],
    n_batches_in_buffer=4,
    train_batch_size_tokens=trial["batch_rows"],
    device="cpu",
    autocast=trial["bfloat16"],
    autocast_lm=trial["bfloat16"],
    logger=LoggingConfig(log_to_wandb=False),
    n_checkpoints=0,
    save_final_checkpoint=False,
    output_path=None,
)
LanguageModelSAETrainingRunner(config, override_dataset=documents).run()
