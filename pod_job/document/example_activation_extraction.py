"""Four examples: basic extraction, generation with extraction, saving for SAE training, real Hugging Face weights.

The first needs nothing; the others a model and tasks: `--model_path Qwen/Qwen2.5-0.5B --tasks_file arc_tasks.json`.
"""

import pickle
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pod_job.commands.command_line import Parser
from pod_job.document import simple_extraction_inference
from pod_job.document.flags import exit_status_in_flags

TINY = {
    "model_type": "qwen2",
    "num_hidden_layers": 4,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 320,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "max_position_embeddings": 256,
}


def basic_layer_extraction() -> None:
    """Prints the shapes of logits and of two layers' outputs from one call, with random weights."""
    import jax
    import jax.numpy as jnp

    from pod_job.models import create_model_with_hooks

    model = create_model_with_hooks(TINY, layers_to_extract=[1, 3])
    input_ids = jnp.arange(10)[None]
    params = jax.jit(model.init)(jax.random.key(0), input_ids)
    logits, activations = jax.jit(lambda p, ids: model.apply(p, ids, return_activations=True))(params, input_ids)
    print(f"logits {logits.shape}")
    for name, values in activations.items():
        print(f"{name}: all positions {values.shape}, the last one for SAE training {values[:, -1, :].shape}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status: 0 done, 2 for bad input."""
    parser = Parser(prog="example_activation_extraction", description=__doc__, allow_abbrev=False)
    parser.add_argument("--model_path", default=None)
    parser.add_argument("--tasks_file", default="arc_tasks.json")
    parser.add_argument("--layers_to_extract", nargs="+", default=["6", "12"])
    parser.add_argument("--out_dir", type=Path, default=Path("example"))
    options = parser.parse_args(argv)
    print("1. Basic layer extraction")
    status = exit_status_in_flags(basic_layer_extraction)
    if options.model_path is None:
        print("2., 3. and 4. need --model_path and --tasks_file")
        return status
    given = ["--model_path", options.model_path, "--tasks_file", options.tasks_file, "--limit", "2"]
    given += ["--layers_to_extract", *options.layers_to_extract, "--seq_len", "512", "--too_long", "cut"]
    given += ["--batch_size", "2", "--output_dir", str(options.out_dir / "outputs")]
    more = {
        "2. Generation with extraction": ["--max_tokens", "16", "--positions", "generated"],
        "3. Saving for SAE training": ["--max_tokens", "0"],
        "4. Real Hugging Face weights": ["--max_tokens", "0", "--positions", "all"],
    }
    for number, (title, flags) in enumerate(more.items(), start=2):
        print(title)
        folder = options.out_dir / f"activations_{number}"
        status = simple_extraction_inference.main([*given, *flags, "--activations_dir", str(folder)])
        if status:
            return status
        for file in sorted(folder.glob("*.pkl")):
            vectors = np.stack([item["activation"] for item in pickle.loads(file.read_bytes())["activations"]])
            print(f"{file}: {vectors.shape}")
    return status


if __name__ == "__main__":
    sys.exit(main())
