"""Compares losses and gradients with those of SAELens' own classes: `python -m tools.sae_peers.losses` prints JSON.

Every architecture, with the same parameters and rows. Needs the environment `trainers` of tools.peers.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import msgspec
import numpy as np

from pod_job.commands.command_line import exit_status
from pod_job.config.train import Architecture
from pod_job.training.architectures.kinds import coefficients_for, initial_parameters, loss
from pod_job.training.architectures.parts import Batch, Params
from pod_job.training.architectures.shape import SaeShape
from tools import peers

PEER = Path(__file__).parents[1] / "bench/ways/sae_lens_training.py"


class Loss(msgspec.Struct, frozen=True):
    """Loss of one architecture in both, and relative distances of the gradients; None where they differ by design."""

    ours: float
    sae_lens: float
    encoder_gradient: float | None
    decoder_gradient: float | None


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
    theirs = run_peer(arrays)
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


def run_peer(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns what SAELens' side makes of the arrays."""
    python = peers.make("trainers")
    with tempfile.TemporaryDirectory() as scratch:
        given, result = Path(scratch) / "given.npz", Path(scratch) / "result.npz"
        np.savez(given, **arrays)  # type: ignore[arg-type]
        # -P: files beside the script have the names of packages.
        argv = [str(python), "-P", str(PEER), "losses", str(given), str(result)]
        subprocess.run(argv, check=True, stdout=sys.stderr, env=peers.quiet_environment())
        return dict(np.load(result))


def main() -> int:
    """Prints the losses as JSON."""
    print(msgspec.json.format(msgspec.json.encode(compare_losses()), indent=2).decode())
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main))
