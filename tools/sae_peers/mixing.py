"""Measures how well the shuffle buffer mixes: `python -m tools.sae_peers.mixing RUN_DIR TAP` prints JSON lines.

The rows of a finished run enter in their order, whole contexts at a time, as a stream brings them. Ways: `none`,
batches as they come; `buffer`, through the buffer; `shuffled`, all rows in random order. `noise` is the variance of a
batch's mean row in that of as many independent rows: 1 where batches are as good as shuffled. With --train, explained
variance of held-out rows after one pass, too.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

from pod_job.commands.command_line import exit_status
from pod_job.training.buffer import empty_buffer, exchange, put
from pod_job.training.recipe import Recipe
from pod_job.training.trainer import Trainer
from tools.sae_peers.curves import STATISTICS_ROWS, Trial, qualities, rows_of, statistics_of

WAYS = ("none", "buffer", "shuffled")


def order_of(way: str, count: int, batch_rows: int) -> np.ndarray:
    """Returns the rows of each step as they enter [steps, batch_rows]."""
    steps = count // batch_rows
    rows = np.random.default_rng(0).permutation(count) if way == "shuffled" else np.arange(count)
    return rows[: steps * batch_rows].reshape(steps, batch_rows)


def leaving(rows: np.ndarray, order: np.ndarray, slots: int) -> Iterator[jax.Array]:
    """Yields the batches that leave the buffer; what it holds at the end is left there."""
    valid, key = jnp.ones(order.shape[1], bool), jax.random.key(0)
    buffer = empty_buffer({"tap": rows.shape[1]}, order.shape[1], slots)
    fill, swap = jax.jit(put, donate_argnums=0), jax.jit(exchange, donate_argnums=0)
    for step, batch in enumerate(order):
        if step < slots:
            buffer = fill(buffer, ({"tap": rows[batch]}, valid), np.int32(step))
        else:
            buffer, (left, _) = swap(buffer, ({"tap": rows[batch]}, valid), jax.random.fold_in(key, step))
            yield left["tap"]


def noise(batches: Iterator[jax.Array], rows: np.ndarray) -> float:
    """Returns the variance of a batch's mean in that of as many independent rows."""
    center, total, count, size = rows.mean(axis=0), 0.0, 0, 0
    variance = float(np.mean(np.sum((rows - center) ** 2, axis=1)))
    for batch in batches:
        size, count = len(batch), count + 1
        total += float(jnp.sum((jnp.mean(batch, axis=0) - center) ** 2))
    return total / count * size / variance


def noise_of(way: str, rows: np.ndarray, batch_rows: int, slots: int) -> float:
    order = order_of(way, len(rows), batch_rows)
    batches = leaving(rows, order, slots) if way == "buffer" else (jnp.asarray(rows[batch]) for batch in order)
    return noise(batches, rows)


def explained(trial: Trial, way: str, slots: int) -> float:
    """Returns the explained variance of held-out rows after one pass."""
    mesh = jax.make_mesh((1, 1), ("data", "model"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:1])
    order = order_of(way, len(trial.seen), trial.batch_rows)
    buffer = slots if way == "buffer" else 0
    steps = len(order)
    recipe = Recipe(steps=steps, warm_up_steps=steps // 20, dead_rows=1000 * trial.batch_rows, buffer_steps=buffer)
    plan = trial.plan(0, learning_rate=trial.rate)
    trainer = Trainer((plan,), recipe, mesh, ("data",), {"tap": trial.seen.shape[1]}, trial.batch_rows)
    statistics = statistics_of(trial.seen[:STATISTICS_ROWS])
    state, valid = trainer.initial_state({"tap": statistics}), np.ones(trial.batch_rows, bool)
    rows, gather = jnp.asarray(trial.seen), jax.jit(lambda rows, batch: rows[batch])
    for step, batch in enumerate(order):
        entering = {"tap": gather(rows, batch)}
        if step < buffer:
            state = trainer.fill(state, entering, valid, np.int32(step))
        else:
            state, _ = trainer.step(state, entering, valid)
    for slot in range(buffer):
        state, _ = trainer.drain(state, np.int32(slot))
    held_out = jnp.asarray(trial.held_out * statistics.scale)
    return float(qualities(plan.shape, state.groups[0].params, held_out)[0][0])


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.sae_peers.mixing", description=__doc__)
    parser.add_argument("run_dir")
    parser.add_argument("tap")
    sizes = {"batch-rows": 4096, "slots": 32, "latents": 4096, "k": 32, "held-out": 16384}
    for option, default in sizes.items():
        parser.add_argument(f"--{option}", type=int, default=default)
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate")
    parser.add_argument("--train", action="store_true")
    given = parser.parse_args(argv)
    rows = rows_of(given.run_dir, given.tap)
    seen, held_out = rows[: -given.held_out], rows[-given.held_out :]
    trial = Trial(seen, held_out, 0, given.batch_rows, given.latents, given.k, 0, given.rate)
    report(trial, given.slots, given.train)
    return 0


def report(trial: Trial, slots: int, train: bool) -> None:
    """Prints the measurements of each way."""
    for way in WAYS:
        measured: dict[str, object] = {"way": way, "noise": noise_of(way, trial.seen, trial.batch_rows, slots)}
        if train:
            measured["explained_variance"] = explained(trial, way, slots)
        print(json.dumps(measured), flush=True)


if __name__ == "__main__":
    sys.exit(exit_status(run))
