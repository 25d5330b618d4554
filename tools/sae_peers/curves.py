"""Trains TopK SAEs here and with SAELens' trainer on the same rows, and compares explained variance on rows held out.

`python -m tools.sae_peers.curves RUN_DIR TAP --steps 2000 --seeds 3`: RUN_DIR is a finished run; its last rows are held
out, the others are trained on in the same order on both sides. Prints each curve as JSON, one a line, as it is done.

Recipes: `equal`, the same first parameters, scale of the rows and schedule, no AuxK, decoder norms left alone; `norms`,
the same but for what each does by itself with norms (unit rows here, rescaled latents there) and with AuxK; `defaults`,
each with its own defaults, of rows in their own units in SAELens.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
from jax.sharding import AxisType

from pod_job.commands.command_line import exit_status
from pod_job.config.train import Architecture
from pod_job.planning.training import SourceRun
from pod_job.run_folder.metadata import read_any
from pod_job.storage.open import open_folder
from pod_job.training.architectures.kinds import decode, encode
from pod_job.training.architectures.shape import SaeShape
from pod_job.training.recipe import Recipe, SaePlan
from pod_job.training.run_rows import RunOrder, RunRows
from pod_job.training.tap_statistics import TapStatistics, measure_tap
from pod_job.training.trainer import Trainer
from tools import peers

PEER = Path(__file__).parents[1] / "bench/ways/sae_lens_training.py"
STATISTICS_ROWS = 65536
RECIPES = ("equal", "norms", "defaults")
INITIAL = ("encoder", "encoder_bias", "decoder", "decoder_bias")


class Point(msgspec.Struct, frozen=True):
    step: int
    explained_variance: float


class Curve(msgspec.Struct, frozen=True):
    """Explained variance of held-out rows over one training, and at its end L0 and the share of latents never active.

    `seconds` are of all seeds at once here, and include compiling.
    """

    recipe: str
    side: str
    seed: int
    points: list[Point]
    l0: float
    dead: float
    seconds: float


@dataclass(frozen=True)
class Trial:
    """Training of both sides: rows to train on and held out, and sizes; `every` steps the curves have a point."""

    seen: np.ndarray
    held_out: np.ndarray
    steps: int
    batch_rows: int
    latents: int
    k: int
    every: int
    rate: float

    def plan(self, seed: int, **settings: float) -> SaePlan:
        width = self.seen.shape[1]
        shape = SaeShape(
            architecture=Architecture.topk, input_width=width, output_width=width, latents=self.latents, k=self.k
        )
        return SaePlan(name=f"seed {seed}", shape=shape, inputs=("tap",), seed=seed, **settings)  # type: ignore[arg-type]

    def recipe(self, name: str) -> Recipe:
        warm_up, dead = max(1, self.steps // 20), 1000 * self.batch_rows
        if name == "defaults":
            return Recipe(steps=self.steps, warm_up_steps=min(1000, self.steps // 10), buffer_steps=0)
        return Recipe(
            steps=self.steps, warm_up_steps=warm_up, decay_steps=self.steps // 5, buffer_steps=0, dtype="float32",
            epsilon=1e-8, dead_rows=dead, unit_norm=name != "equal",
        )  # fmt: skip

    def plans(self, name: str, seeds: Sequence[int]) -> tuple[SaePlan, ...]:
        settings = {} if name == "defaults" else {"learning_rate": self.rate, "auxiliary": auxiliary(name)}
        return tuple(self.plan(seed, **settings) for seed in seeds)

    def order(self) -> np.ndarray:
        """Returns the rows of each step [steps, batch_rows], each pass over the data in another order."""
        random, wanted = np.random.default_rng(0), self.steps * self.batch_rows
        passes = [random.permutation(len(self.seen)).astype(np.int32) for _ in range(-(-wanted // len(self.seen)))]
        return np.concatenate(passes)[:wanted].reshape(self.steps, self.batch_rows)


def auxiliary(name: str) -> float:
    return 0.0 if name == "equal" else 1 / 32


def rows_of(run_dir: str, tap: str) -> np.ndarray:
    """Returns the rows of a finished run that may be trained on, in the order of the run."""
    folder = open_folder(run_dir)
    source = RunRows(SourceRun(folder, read_any(folder)), [tap], seed=0)
    count = source.order.rows
    source.order = RunOrder(count, count, 0)
    vectors, valid = source.read(0, count)
    return vectors[tap].astype(np.float32)[valid]


def statistics_of(rows: np.ndarray) -> TapStatistics:
    return measure_tap(rows, np.ones(len(rows), bool)).statistics


def ours(trial: Trial, name: str, seeds: Sequence[int]) -> Iterator[Curve]:
    """Trains the SAEs of all seeds at once; yields their curves."""
    began = time.monotonic()
    mesh = jax.make_mesh((1, 1), ("data", "model"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:1])
    width, plans = trial.seen.shape[1], trial.plans(name, seeds)
    trainer = Trainer(plans, trial.recipe(name), mesh, ("data",), {"tap": width}, trial.batch_rows)
    statistics = statistics_of(trial.seen[:STATISTICS_ROWS])
    state = trainer.initial_state({"tap": statistics})
    rows, held_out = jnp.asarray(trial.seen), jnp.asarray(trial.held_out * statistics.scale)
    valid, points = np.ones(trial.batch_rows, bool), []
    gather = jax.jit(lambda rows, batch: rows[batch])
    for step, batch in enumerate(trial.order()):
        if step % trial.every == 0:
            points.append((step, qualities(plans[0].shape, state.groups[0].params, held_out)))
        state, _ = trainer.step(state, {"tap": gather(rows, batch)}, valid)
    points.append((trial.steps, qualities(plans[0].shape, state.groups[0].params, held_out)))
    for i, seed in enumerate(seeds):
        curve = [Point(step, float(values[0][i])) for step, values in points]
        last = points[-1][1]
        yield Curve(name, "ours", seed, curve, float(last[1][i]), float(last[2][i]), time.monotonic() - began)


@jax.jit
def deviation(rows: jax.Array) -> jax.Array:
    return jnp.sum((rows - jnp.mean(rows, axis=0)) ** 2)


def qualities(shape: SaeShape, params: dict[str, jax.Array], rows: jax.Array) -> tuple[np.ndarray, ...]:
    """Returns explained variance, L0 and dead share of each SAE [S]."""
    return tuple(np.asarray(values) for values in measured(shape, params, rows))


def one(shape: SaeShape, params: dict[str, jax.Array], rows: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    latents = encode(shape, params, rows)
    error, active = jnp.sum((rows - decode(shape, params, latents, rows)) ** 2), latents > 0
    return 1 - error / deviation(rows), jnp.mean(jnp.sum(active, axis=1)), jnp.mean(~jnp.any(active, axis=0))


measured = jax.jit(
    lambda shape, params, rows: jax.lax.map(lambda each: one(shape, each, rows), params), static_argnums=0
)


def write_rows(trial: Trial, folder: Path) -> None:
    """Writes the arrays that SAELens' side reads."""
    for name, array in (("seen", trial.seen), ("held_out", trial.held_out), ("order", trial.order())):
        np.save(folder / f"{name}.npy", array)


def sae_lens(trial: Trial, name: str, seed: int, python: Path, folder: Path) -> Curve:
    """Trains one SAE in SAELens on the rows of `folder`; returns its curve."""
    began, own = time.monotonic(), name == "defaults"
    statistics = statistics_of(trial.seen[:STATISTICS_ROWS])
    config: dict[str, object] = {"d_in": trial.seen.shape[1], "d_sae": trial.latents, "k": trial.k}
    settings: dict[str, object] = {"total_training_samples": trial.steps * trial.batch_rows}
    settings |= {"train_batch_size_samples": trial.batch_rows}
    settings |= {"lr_end": 3e-5}  # its trainer asks for one, which its schedule `constant` does not use
    arrays: dict[str, np.ndarray] = {}
    if not own:
        recipe, plans = trial.recipe(name), trial.plans(name, [seed])
        config |= {"rescale_acts_by_decoder_norm": name == "norms", "aux_loss_coefficient": auxiliary(name)}
        settings |= {"lr": trial.rate, "lr_end": trial.rate}
        settings |= {"lr_warm_up_steps": recipe.warm_up_steps, "lr_decay_steps": recipe.decay}
        arrays = first_parameters(plans, recipe, statistics, trial)
    np.savez(folder / "initial.npz", **arrays)  # type: ignore[arg-type]
    scale = 1.0 if own else statistics.scale
    given = {"config": config, "trainer": settings, "seed": seed, "every": trial.every, "scale": scale}
    (folder / "settings.json").write_text(json.dumps(given))
    # -P: files beside the script have the names of packages.
    argv = [str(python), "-P", str(PEER), "train", str(folder), str(folder / "result.json")]
    subprocess.run(argv, check=True, stdout=sys.stderr, env=peers.quiet_environment())
    result = json.loads((folder / "result.json").read_text())
    points = [Point(step, value) for step, value in result["points"]]
    return Curve(name, "SAELens", seed, points, result["l0"], result["dead"], time.monotonic() - began)


def first_parameters(
    plans: tuple[SaePlan, ...], recipe: Recipe, statistics: TapStatistics, trial: Trial
) -> dict[str, np.ndarray]:
    mesh = jax.make_mesh((1, 1), ("data", "model"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:1])
    trainer = Trainer(plans, recipe, mesh, ("data",), {"tap": trial.seen.shape[1]}, trial.batch_rows)
    params = trainer.initial_state({"tap": statistics}).groups[0].params
    return {name: np.asarray(params[name][0]) for name in INITIAL}


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.sae_peers.curves", description=__doc__)
    parser.add_argument("run_dir")
    parser.add_argument("tap")
    sizes = {
        "steps": 2000,
        "batch-rows": 4096,
        "latents": 4096,
        "k": 32,
        "every": 250,
        "held-out": 16384,
        "rows": 1 << 40,
    }
    for option, default in sizes.items():
        parser.add_argument(f"--{option}", type=int, default=default)
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate of the recipes that both share")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=RECIPES)
    parser.add_argument("--python", type=Path, help="interpreter that has SAELens; by default that of tools.peers")
    given = parser.parse_args(argv)
    python, rows = given.python or peers.make("trainers"), rows_of(given.run_dir, given.tap)
    parts, seeds = (rows[: -given.held_out][: given.rows], rows[-given.held_out :]), range(given.seeds)
    trial = Trial(*parts, given.steps, given.batch_rows, given.latents, given.k, given.every, given.rate)
    with tempfile.TemporaryDirectory() as scratch:
        write_rows(trial, Path(scratch))
        for name in given.recipes:
            with jax.default_matmul_precision("highest"):
                for curve in ours(trial, name, seeds):
                    print(msgspec.json.encode(curve).decode(), flush=True)
            for seed in seeds:
                print(msgspec.json.encode(sae_lens(trial, name, seed, python, Path(scratch))).decode(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(run))
