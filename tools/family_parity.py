"""Measures every model family against Hugging Face's torch model: each site, packed and generated, on meshes of CPUs.

`python -m tools.family_parity [FAMILY ...]` prints the table of docs/models.md; it takes eight CPU devices and some
minutes a family. `--bfloat16` prints the errors of both models in bfloat16. Needs torch.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import cast

os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jaxtyping import Array

from pod_job.checking.hf_reference import cast_while_running, load_reference, run_reference
from pod_job.checkpoints.checkpoint import read_checkpoint
from pod_job.checkpoints.load import load_params
from pod_job.config.schema import MeshConfig, Sharding
from pod_job.formats.relative_errors import relative_errors
from pod_job.models import layer_loop
from pod_job.models.arch import read_arch_file
from pod_job.models.cache import Cache, Kept
from pod_job.models.decoder import Activations, Decoder, Output, Params
from pod_job.models.families import CAUSAL
from pod_job.models.layer_attention import Tokens
from pod_job.models.mesh import make_mesh, placement, row_sharding, weight_shardings
from pod_job.models.taps import resolve
from pod_job.models.weight_table import weight_table
from tools.tiny_model import write_tiny_model

MESH = MeshConfig(data=2, model=4)
ROWS, LENGTHS, PROMPT = 8, (13, 7), 17
"""Rows of two packed sequences; in generation, one sequence of their length whose first tokens are the prompt."""
OPTIONS = {"xla_backend_optimization_level": 0}  # most of a tiny model's time is the compiler's last stage
WAYS = ("packed", "generated")


def parity(family: str, shardings: Sequence[Sharding] = tuple(Sharding)) -> dict[tuple[str, str, str], float]:
    """Returns the largest relative error of a vector in float32, by sharding, way (packed or generated) and site."""
    errors: dict[tuple[str, str, str], float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = write_tiny_model(Path(scratch) / family, family, layers=2, hidden=64, heads=8, kv_heads=4, seed=3)
        ids = np.random.default_rng(0).integers(0, 256, (ROWS, sum(LENGTHS))).astype(np.int32)
        reference = load_reference(folder)
        parts = [run_reference(reference, part) for part in np.split(ids, [LENGTHS[0]], axis=1)]
        truths = {
            "packed": {tap: np.concatenate([part[tap] for part in parts], axis=1) for tap in parts[0]},
            "generated": run_reference(reference, ids),
        }
        for sharding in shardings:
            model, params, rows = on_mesh(folder, sharding)
            for way, run in {"packed": packed, "generated": generated}.items():
                for tap, vectors in run(model, params, ids, rows).items():
                    key = (sharding.value, way, site_of(tap))
                    worst = float(relative_errors(flat(vectors), flat(truths[way][tap])).max())
                    errors[key] = max(errors.get(key, 0.0), worst)
    return errors


def bfloat16_errors(family: str) -> dict[str, tuple[float, float]]:
    """Returns for each site the mean relative error of Hugging Face's vectors in bfloat16, and that of ours.

    Both are held against Hugging Face's in float32, on one device.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = write_tiny_model(Path(scratch) / family, family, layers=2, hidden=64, heads=8, kv_heads=4, seed=3)
        ids = np.random.default_rng(0).integers(0, 256, (ROWS, sum(LENGTHS))).astype(np.int32)
        reference = load_reference(folder)
        truths = run_reference(reference, ids)
        with cast_while_running(reference, torch.bfloat16):
            theirs = run_reference(reference, ids)
        arch = read_arch_file(folder / "config.json")
        table, here = weight_table(arch), jax.sharding.SingleDeviceSharding(jax.devices()[0])
        params = load_params(read_checkpoint(folder), table, jnp.bfloat16, dict.fromkeys(table, here))
        model = Decoder(arch, resolve(None, ["*"], arch), jnp.bfloat16)

        def step(params: Params, ids: Array) -> Activations:
            return with_logits(cast(Output, model.apply(params, ids, return_activations=True)))

        ours = as_numpy(jax.jit(step, compiler_options=OPTIONS)(params, jnp.asarray(ids)))
    errors: dict[str, list[tuple[float, float]]] = {}
    for tap, truth in truths.items():
        if tap.endswith("expert_ids"):  # numbers, of which a rounded router may choose others
            continue
        both = [
            float(np.mean(relative_errors(x[tap].astype(np.float32).reshape(-1, x[tap].shape[-1]), flat(truth))))
            for x in (theirs, ours)
        ]
        errors.setdefault(site_of(tap), []).append((both[0], both[1]))
    return {
        site: (float(np.mean([e[0] for e in pairs])), float(np.mean([e[1] for e in pairs])))
        for site, pairs in errors.items()
    }


def flat(x: np.ndarray) -> np.ndarray:
    return x.reshape(-1, x.shape[-1])


def bfloat16_table(families: Sequence[str]) -> str:
    """Returns a Markdown table of errors of the residual stream and logits in bfloat16, and the worst site's ratio."""
    lines = ["| family | residual stream: theirs, ours | logits: theirs, ours | largest ratio |", "|---|---|---|---|"]
    for family in families:
        errors = bfloat16_errors(family)
        ratio, site = max((ours / theirs, site) for site, (theirs, ours) in errors.items() if theirs > 0)
        cells = [f"{theirs:.2e}, {ours:.2e}" for theirs, ours in (errors["resid_post"], errors["logits"])]
        lines.append(f"| `{family}` | {cells[0]} | {cells[1]} | {ratio:.2f} (`{site}`) |")
        print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join(lines)


def site_of(tap: str) -> str:
    """Returns the site of a tap."""
    if "." in tap:
        return tap.rpartition(".")[2]
    return {"embed": "embed", "logits": "logits"}.get(tap) or ("final_norm" if tap.endswith("_norm") else "resid_post")


def on_mesh(folder: Path, sharding: Sharding) -> tuple[Decoder, Params, jax.sharding.Sharding]:
    """Returns the model with all taps, its weights on the mesh, and the sharding of rows."""
    arch, mesh = read_arch_file(folder / "config.json"), make_mesh(MESH)
    table = weight_table(arch)
    shardings = weight_shardings(mesh, sharding, table)
    params = load_params(read_checkpoint(folder), table, np.float32, shardings)
    model = Decoder(arch, resolve(None, ["*"], arch), jnp.float32, placement(mesh, sharding, shardings))
    return model, params, row_sharding(mesh, sharding)


def packed(model: Decoder, params: Params, ids: np.ndarray, rows: jax.sharding.Sharding) -> dict[str, np.ndarray]:
    """Returns every tap and the logits of rows in which two sequences are packed."""
    segments = np.repeat([np.repeat([1, 2], LENGTHS)], ROWS, axis=0).astype(np.int32)
    positions = np.repeat([[position for length in LENGTHS for position in range(length)]], ROWS, axis=0).astype(
        np.int32
    )

    def step(params: Params, ids: Array, segments: Array, positions: Array) -> Activations:
        output = model.apply(params, ids, segment_ids=segments, positions=positions, return_activations=True)
        return with_logits(cast(Output, output))

    arrays = [jax.device_put(array, rows) for array in (ids, segments, positions)]
    return as_numpy(jax.jit(step, compiler_options=OPTIONS)(params, *arrays))


def generated(model: Decoder, params: Params, ids: np.ndarray, rows: jax.sharding.Sharding) -> dict[str, np.ndarray]:
    """Returns every tap of rows of one sequence: its beginning by one call, then token by token from the cache."""
    length = ids.shape[1]

    def read(params: Params, ids: Array) -> tuple[Activations, Cache]:
        positions = jnp.broadcast_to(jnp.arange(PROMPT), ids.shape)
        tokens, last = Tokens(ids, positions, jnp.ones_like(ids)), jnp.full((ROWS, 1), PROMPT - 1)
        begun = model.apply(params, tokens, last, length, return_activations=True, method="read")
        output, kept = cast(tuple[Output, Kept], begun)
        return output.activations, Cache(kept, jnp.int32(PROMPT))

    def extend(params: Params, ids: Array, positions: Array, cache: Cache) -> tuple[Activations, Cache]:
        extended = model.apply(params, ids, cache, positions=positions, return_activations=True, method="extend")
        output, cache = cast(tuple[Output, Cache], extended)
        return output.activations, cache

    taps, cache = jax.jit(read, compiler_options=OPTIONS)(params, jax.device_put(ids[:, :PROMPT], rows))
    program, found = jax.jit(extend, compiler_options=OPTIONS), [as_numpy(taps)]
    for at in range(PROMPT, length):
        arrays = [jax.device_put(array, rows) for array in (ids[:, at : at + 1], np.full((ROWS, 1), at, np.int32))]
        taps, cache = program(params, *arrays, cache)
        found.append(as_numpy(taps))
    return {tap: np.concatenate([part[tap] for part in found], axis=1) for tap in found[0]}


def with_logits(output: Output) -> Activations:
    assert output.logits is not None
    return output.activations | {"logits": output.logits}


def as_numpy(taps: Activations) -> dict[str, np.ndarray]:
    return {tap: np.asarray(vectors) for tap, vectors in taps.items()}


def table(families: Sequence[str] = CAUSAL) -> str:
    """Returns a Markdown table: the largest error of any site for each family, mesh and way, and at which site."""
    columns = [(sharding.value, way) for sharding in Sharding for way in WAYS]
    lines = ["| family | sites | " + " | ".join(f"{sharding}, {way}" for sharding, way in columns) + " |"]
    lines.append("|---" * (len(columns) + 2) + "|")
    for family in families:
        errors = parity(family)
        cells = []
        for column in columns:
            worst, site = max((error, key[2]) for key, error in errors.items() if key[:2] == column)
            cells.append(f"{worst:.1e} (`{site}`)")
        lines.append(f"| `{family}` | {len({site for _, _, site in errors})} | {' | '.join(cells)} |")
        print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join(lines)


if __name__ == "__main__":
    layer_loop.MOST_PIECES = 0  # one loop: the smaller program, the quicker to compile
    options = argparse.ArgumentParser(prog="python -m tools.family_parity", description="Compare families with torch.")
    options.add_argument("families", nargs="*", metavar="FAMILY", help=f"of {', '.join(CAUSAL)}; by default all")
    options.add_argument("--bfloat16", action="store_true", help="errors of both models in bfloat16")
    chosen = options.parse_args()
    print((bfloat16_table if chosen.bfloat16 else table)(chosen.families or CAUSAL))
