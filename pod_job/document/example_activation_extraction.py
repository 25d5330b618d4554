"""Four examples: basic extraction, generation with extraction, saving for SAE training, real Hugging Face weights.

Without arguments on a small random model and two tasks that they write under `--out_dir`; with
`--model_path Qwen/Qwen2.5-0.5B --tasks_file arc_tasks.json --layers_to_extract 6 12 18 23` on those.
"""

import pickle
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pod_job.commands.command_line import Parser
from pod_job.document import simple_extraction_inference
from pod_job.document.flags import exit_status_in_flags
from pod_job.document.small_model import CONFIG, write_small_model, write_small_tasks
from pod_job.host.tpu_slice import use_cpu_without_accelerator

PROMPT = "Input:\n1 2 0\nOutput:\n0 2 1\n\nInput:\n4 0 5\nOutput:\n"
SMALL_MODELS_LAYERS = [1, 3]
NEW_TOKENS = 8


def basic_layer_extraction() -> None:
    """Prints the shapes of logits and of two layers' outputs from one call, with random weights."""
    import jax
    import jax.numpy as jnp

    from pod_job.models import create_model_with_hooks

    model = create_model_with_hooks(CONFIG, layers_to_extract=SMALL_MODELS_LAYERS)
    input_ids = jnp.arange(10)[None]
    params = jax.jit(model.init)(jax.random.key(0), input_ids)
    logits, activations = jax.jit(lambda p, ids: model.apply(p, ids, return_activations=True))(params, input_ids)
    print(f"logits {logits.shape}")
    for name, values in activations.items():
        print(f"{name}: all positions {values.shape}, the last one for SAE training {values[:, -1, :].shape}")


def real_weights(model_path: str, layers: Sequence[int]) -> None:
    """Loads a Hugging Face model, continues a prompt, and prints the activations at its last position."""
    import jax

    from pod_job.notebook.hooked_model import load_model

    model, params, tokenizer = load_model(model_path, layers_to_extract=layers)
    apply = jax.jit(lambda params, ids: model.apply(params, ids, return_activations=True))
    input_ids = np.array([tokenizer(PROMPT)["input_ids"]])
    logits, activations = apply(params, input_ids)
    print(f"{model_path}: {input_ids.shape[1]} tokens, logits {logits.shape}")
    for name, values in activations.items():
        last = np.asarray(values[:, -1, :])
        print(f"{name}: {values.shape}, norm at the last position {np.linalg.norm(last):.2f}")
    print(f"the most likely next token: {tokenizer.decode([int(logits[0, -1].argmax())])!r}")


def through_the_command(options: Namespace, number: int, flags: Sequence[str]) -> None:
    """Runs the simple command, and prints what is in its pickle files. SystemExit with its status where it fails."""
    folder = options.out_dir / f"activations_{number}"
    given = ["--model_path", options.model_path, "--tasks_file", options.tasks_file, "--limit", "2"]
    given += ["--layers_to_extract", *map(str, options.layers_to_extract), "--seq_len", "512", "--too_long", "tail"]
    given += ["--batch_size", "2", "--output_dir", str(options.out_dir / f"outputs_{number}")]
    status = simple_extraction_inference.main([*given, *flags, "--activations_dir", str(folder)])
    if status:
        raise SystemExit(status)
    for file in sorted(folder.glob("*.pkl")):
        vectors = np.stack([item["activation"] for item in pickle.loads(file.read_bytes())["activations"]])
        print(f"{file}: {vectors.shape}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status: 0 done, 2 for bad input."""
    parser = Parser(prog="example_activation_extraction", description=__doc__, allow_abbrev=False)
    parser.add_argument("--model_path", default=None, help="by default a small random model")
    parser.add_argument("--tasks_file", default=None, help="by default two small tasks")
    parser.add_argument("--layers_to_extract", type=int, nargs="+", default=None, metavar="LAYER")
    parser.add_argument("--out_dir", type=Path, default=Path("example"))
    options = parser.parse_args(argv)
    return exit_status_in_flags(lambda: run_examples(options))


def run_examples(options: Namespace) -> None:
    """Runs all four; JobError, or SystemExit with the status of a command, at the first that fails."""
    began = time.monotonic()
    if options.layers_to_extract is None:
        options.layers_to_extract = SMALL_MODELS_LAYERS if options.model_path is None else [6, 12]
    options.model_path = options.model_path or str(write_small_model(options.out_dir / "model"))
    options.tasks_file = options.tasks_file or str(write_small_tasks(options.out_dir / "arc_tasks.json"))
    use_cpu_without_accelerator()
    print("1. Basic layer extraction")
    basic_layer_extraction()
    print("\n2. Generation with extraction")
    through_the_command(options, 2, ["--max_tokens", str(NEW_TOKENS), "--positions", "generated"])
    print("\n3. Saving for SAE training")
    through_the_command(options, 3, ["--max_tokens", "0"])
    print("\n4. Real Hugging Face weights")
    real_weights(options.model_path, options.layers_to_extract)
    print(f"\nall four examples are done in {time.monotonic() - began:,.1f} s; files are in {options.out_dir}")


if __name__ == "__main__":
    sys.exit(main())
