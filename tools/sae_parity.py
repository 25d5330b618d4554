"""Compares the training of sparse autoencoders with SAELens: `python -m tools.sae_parity losses` or `training`.

`losses`: loss and gradients of every architecture, with the same parameters and rows, in SAELens' own classes.
`training`: SmolLM2's layer 12, the same rows in the same batches under the same schedule; explained variance of rows
that neither saw. Both print JSON. Needs the environment `sae-lens` of tools.peers; `training` also torch.
"""

import argparse
import os
import pydoc_data.topics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
from jax.sharding import AxisType

from pod_job.commands.command_line import exit_status
from pod_job.config.train import Architecture
from pod_job.training.architectures.kinds import coefficients_for, decode, encode, initial_parameters, loss
from pod_job.training.architectures.parts import Batch, Params
from pod_job.training.architectures.shape import SaeShape
from pod_job.training.recipe import Recipe, SaePlan
from pod_job.training.tap_statistics import TapStatistics, measure_tap
from pod_job.training.trainer import Trainer
from tools import peers

PEER = Path(__file__).parent / "bench/ways/sae_lens_training.py"
TAP, LAYER, CONTEXT, HELD_OUT = "resid_post", 12, 256, 4096


class Loss(msgspec.Struct, frozen=True):
    """Loss of one architecture in both, and relative distances of the gradients; None where they differ by design."""

    ours: float
    sae_lens: float
    encoder_gradient: float | None
    decoder_gradient: float | None


class Training(msgspec.Struct, frozen=True):
    """Outcome of both trainings: explained variance and L0 of held-out rows; seconds of ours include compiling."""

    steps: int
    rows_per_step: int
    latents: int
    k: int
    explained_variance: float
    explained_variance_sae_lens: float
    l0: float
    l0_sae_lens: float
    seconds: float
    seconds_sae_lens: float


def compare_losses() -> dict[str, Loss]:
    """Returns the losses of all architectures by both."""
    random, width, latents, ends = np.random.default_rng(0), 24, 64, (16, 32, 64)
    rows, dead = random.normal(size=(32, width)).astype(np.float32), np.arange(latents) % 5 == 1
    batch = Batch(jnp.array(rows), jnp.array(rows), jnp.ones(len(rows), bool))
    coefficients = coefficients_for(shape_of("topk", width, latents), sparsity=0.2, auxiliary=0.5)
    coefficients = coefficients._replace(bandwidth=jnp.float32(0.3))
    arrays, ours = {"rows": rows, "dead": dead, "coefficients": np.array(coefficients), "ends": np.array(ends)}, {}
    for architecture in Architecture:
        kind = architecture.value
        shape = shape_of(kind, width, latents, ends)
        params = initial_parameters(shape, jax.random.key(1))
        params = {n: v + 0.05 * random.normal(size=v.shape).astype(np.float32) for n, v in params.items()}
        # Dead latents must be positive: SAELens' AuxK takes negative ones too.
        params["encoder_bias"] = jnp.where(dead & ("topk" in kind or kind == "matryoshka"), 9.0, params["encoder_bias"])
        params["decoder"] = params["decoder"] / jnp.linalg.norm(params["decoder"], axis=1, keepdims=True)
        if kind == "jump_relu":
            params["log_threshold"] = params["log_threshold"] + 4.0
        arrays |= {f"{kind}.{name}": np.asarray(value) for name, value in params.items()}
        gradient, metrics = jax.grad(loss, argnums=1, has_aux=True)(shape, params, batch, coefficients, jnp.array(dead))
        ours[kind] = float(metrics.loss), gradient
    theirs = run_peer("losses", arrays)
    return {kind: compared(kind, value, gradient, theirs) for kind, (value, gradient) in ours.items()}


def compared(kind: str, value: float, gradient: Params, theirs: dict[str, np.ndarray]) -> Loss:
    def distance(name: str) -> float:
        other = theirs[f"{kind}.{name}_gradient"]
        return float(np.linalg.norm(gradient[name] - other) / np.linalg.norm(other))

    # SAELens chooses by activation times decoder norm, whose gradient it passes; it does not freeze the gated decoder.
    decoder = distance("decoder") if kind in ("relu", "jump_relu") else None
    return Loss(value, float(theirs[f"{kind}.loss"]), distance("encoder"), decoder)


def shape_of(kind: str, width: int, latents: int, ends: Sequence[int] = ()) -> SaeShape:
    architecture = Architecture(kind)
    groups = tuple(np.diff([0, *ends]).tolist()) if architecture is Architecture.matryoshka else ()
    k = 5 if architecture.has_k else None
    return SaeShape(
        architecture=architecture, input_width=width, output_width=width, latents=latents, k=k, group_sizes=groups
    )


def run_peer(action: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns what SAELens' side makes of the arrays."""
    python = peers.python_of("sae-lens") if peers.is_made("sae-lens") else peers.make("sae-lens")
    with tempfile.TemporaryDirectory() as scratch:
        given, result = Path(scratch) / "given.npz", Path(scratch) / "result.npz"
        np.savez(given, **arrays)  # type: ignore[arg-type]
        # -P: files beside the script have the names of packages.
        argv = [str(python), "-P", str(PEER), action, str(given), str(result)]
        subprocess.run(argv, check=True, stdout=sys.stderr, env=peers.quiet_environment())
        return dict(np.load(result))


def model_rows(folder: Path, count: int) -> np.ndarray:
    """Returns vectors behind layer 12 for Python's own documentation, without each context's first token."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    model.layers = model.layers[: LAYER + 1]
    model.norm = torch.nn.Identity()
    text = "\n\n".join(pydoc_data.topics.topics.values())
    tokens = tokenizer(text, return_tensors="pt")["input_ids"][0]
    contexts = -(-count // (CONTEXT - 1))
    batches = tokens[: contexts * CONTEXT].reshape(-1, CONTEXT).split(8)
    with torch.inference_mode():
        vectors = [
            model(input_ids=batch).last_hidden_state[:, 1:].reshape(-1, model.config.hidden_size) for batch in batches
        ]
    return torch.cat(vectors)[:count].numpy()


def statistics_of(rows: np.ndarray) -> TapStatistics:
    return measure_tap(rows, np.ones(len(rows), bool)).statistics


def compare_training(folder: Path, steps: int, rows_per_step: int, distinct: int) -> Training:
    """Trains a TopK SAE of 4,096 latents in both, on `distinct` rows."""
    rows = cached_rows(folder, distinct + HELD_OUT)
    random = np.random.default_rng(0)
    rows = rows[random.permutation(len(rows))]
    seen, held_out = rows[HELD_OUT:], rows[:HELD_OUT]
    statistics = statistics_of(seen[:8192])
    seen, held_out = seen * statistics.scale, held_out * statistics.scale
    epochs = -(-steps * rows_per_step // len(seen))
    order = np.concatenate([random.permutation(len(seen)) for _ in range(epochs)])[: steps * rows_per_step]
    plan = SaePlan(
        name="parity",
        shape=SaeShape(
            architecture=Architecture.topk, input_width=rows.shape[1], output_width=rows.shape[1], latents=4096, k=32
        ),
        inputs=(TAP,),
        learning_rate=1e-3,
    )
    warm_up, decay = max(1, steps // 20), steps // 5
    started = time.monotonic()
    theirs = run_peer(
        "train",
        {
            "batches": seen,
            "order": order,
            "rows_per_batch": np.array(rows_per_step),
            "latents": np.array(plan.shape.latents),
            "k": np.array(plan.shape.k),
            "lr": np.array(plan.learning_rate),
            "auxiliary": np.array(plan.auxiliary),
            "warm_up_steps": np.array(warm_up),
            "decay_steps": np.array(decay),
        },
    )
    between = time.monotonic()
    recipe = Recipe(
        steps=steps, warm_up_steps=warm_up, decay_steps=decay, buffer_steps=0, dtype="float32", epsilon=1e-8,
        dead_rows=1000 * rows_per_step,
    )  # fmt: skip
    params = trained(plan, recipe, seen, order.reshape(steps, rows_per_step))
    ended = time.monotonic()
    mine, other = (
        quality(plan.shape, params, held_out),
        quality(plan.shape, {n: jnp.asarray(v) for n, v in theirs.items()}, held_out),
    )
    return Training(
        steps, rows_per_step, 4096, 32, mine[0], other[0], mine[1], other[1], ended - between, between - started
    )


def trained(plan: SaePlan, recipe: Recipe, rows: np.ndarray, order: np.ndarray) -> Params:
    """Returns the parameters after training on scaled rows in this order."""
    mesh = jax.make_mesh((1, 1), ("data", "model"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:1])
    trainer = Trainer((plan,), recipe, mesh, ("data",), {TAP: rows.shape[1]}, order.shape[1])
    state = trainer.initial_state({TAP: statistics_of(rows[:8192])})
    valid = np.ones(order.shape[1], bool)
    for batch in order:
        state, _ = trainer.step(state, {TAP: rows[batch]}, valid)
    return {name: value[0] for name, value in state.groups[0].params.items()}


def quality(shape: SaeShape, params: Params, rows: np.ndarray) -> tuple[float, float]:
    """Returns explained variance and L0, as SAELens' trainer defines them."""
    latents = jax.jit(encode, static_argnums=0)(shape, params, jnp.asarray(rows))
    output = np.asarray(decode(shape, params, latents, jnp.asarray(rows)))
    error, deviation = np.sum((rows - output) ** 2), np.sum((rows - rows.mean(axis=0)) ** 2)
    return float(1 - error / deviation), float(np.mean(np.sum(np.asarray(latents) > 0, axis=1)))


def cached_rows(folder: Path, count: int) -> np.ndarray:
    """Returns the model's rows; those of an earlier call are kept among temporary files."""
    file = Path(tempfile.gettempdir()) / f"sae_parity_{folder.name}_{count}.npy"
    if not file.exists():
        np.save(file, model_rows(folder, count))
    return np.load(file)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.sae_parity", description=__doc__)
    parser.add_argument("action", choices=("losses", "training"))
    parser.add_argument("--model", type=Path, default=Path("runs/models/SmolLM2-135M-Instruct"))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rows", type=int, default=1024, help="of one step")
    parser.add_argument("--distinct", type=int, default=49152, help="rows that are trained on again and again")
    given = parser.parse_args(argv)
    result = (
        compare_losses()
        if given.action == "losses"
        else compare_training(given.model, given.steps, given.rows, given.distinct)
    )
    print(msgspec.json.format(msgspec.json.encode(result), indent=2).decode())
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main))
