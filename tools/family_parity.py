"""Measures every model family against Hugging Face's torch model: each site, packed and generated, on meshes of CPUs.

`python -m tools.family_parity` prints the table of docs/models.md; it takes eight CPU devices and some minutes.
Needs torch.
"""

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
from jaxtyping import Array

from pod_job.checking.hf_reference import load_reference, run_reference
from pod_job.checkpoints.checkpoint import read_checkpoint
from pod_job.checkpoints.load import load_params
from pod_job.config.schema import MeshConfig, Sharding
from pod_job.formats.relative_errors import relative_errors
from pod_job.models import layer_loop
from pod_job.models.arch import read_arch_file
from pod_job.models.cache import Cache, KeyValues
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
            ways = {"packed": packed} if model.arch.delta else {"packed": packed, "generated": generated}
            for way, run in ways.items():
                for tap, vectors in run(model, params, ids, rows).items():
                    key = (sharding.value, way, tap.rpartition(".")[2] if "." in tap else site_of(tap))
                    flat, truth = (x.reshape(-1, x.shape[-1]) for x in (vectors, truths[way][tap]))
                    errors[key] = max(errors.get(key, 0.0), float(relative_errors(flat, truth).max()))
    return errors


def site_of(tap: str) -> str:
    """Returns the site of a tap that has no dot in its name."""
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
        output, kept = cast(tuple[Output, KeyValues], begun)
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
            worst = max(((error, key[2]) for key, error in errors.items() if key[:2] == column), default=None)
            cells.append("refused" if worst is None else f"{worst[0]:.1e} (`{worst[1]}`)")
        lines.append(f"| `{family}` | {len({site for _, _, site in errors})} | {' | '.join(cells)} |")
        print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join(lines)


if __name__ == "__main__":
    layer_loop.MOST_PIECES = 0  # one loop: the smaller program, the quicker to compile
    print(table())
