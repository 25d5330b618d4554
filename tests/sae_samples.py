"""Small SAEs of every architecture, with random parameters: for tests."""

from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from msgspec.structs import replace
from sample_runs import TIME, identity

from pod_job.config.train import Architecture
from pod_job.formats import records
from pod_job.run_folder.layout import SAES_METADATA
from pod_job.run_folder.train_identity import SaeRecord
from pod_job.run_folder.training import SaeMetrics, TrainedEntry, TrainingMetadata
from pod_job.storage.folder import Folder
from pod_job.training.architectures.kinds import decode, encode
from pod_job.training.architectures.shape import SaeShape
from pod_job.training.saes import SaeOrigin, TrainedSae, parameter_shapes

KINDS = [kind.value for kind in Architecture]
WIDTH, LATENTS = 12, 40


def sae_shape(kind: str, transcoder: bool = False, skip: bool = False, taps: int = 1) -> SaeShape:
    architecture, width = Architecture(kind), WIDTH * taps
    return SaeShape(
        architecture=architecture,
        input_width=width,
        output_width=10 if transcoder and not skip else width,
        latents=LATENTS,
        k=5 if kind in ("topk", "batch_topk", "matryoshka") else None,
        group_sizes=(8, 12, 20) if kind == "matryoshka" else (),
        transcoder=transcoder,
        skip=skip,
        taps=taps,
    )


def random_sae(shape: SaeShape, seed: int = 0) -> TrainedSae:
    """Returns an SAE about half of whose latents are active."""
    rng = np.random.default_rng(seed)
    parameters = {
        name: (rng.standard_normal(size) / 3).astype(np.float32) for name, size in parameter_shapes(shape).items()
    }
    if "log_threshold" in parameters:
        parameters["log_threshold"] -= 1
    if "threshold" in parameters:
        parameters["threshold"] = np.array(0.4, np.float32)
    taps = tuple(f"layer_{layer}" for layer in range(shape.taps)) if not shape.transcoder else ("layer_3.mlp_in",)
    origin = SaeOrigin(name="one", model="org/model", taps=taps, target="layer_3.mlp_out" if shape.transcoder else None)
    return TrainedSae(shape, parameters, origin)


def finish_training(folder: Folder, files: Mapping[str, dict[str, str]] = {}) -> None:
    """Writes the record that all SAEs are there, with the checksums of the files of some."""
    record = SaeRecord("", "topk", ["layer_0"], LATENTS, 0, WIDTH, WIDTH, 3e-4, k=5)
    metrics = SaeMetrics(loss=1.0, l0=5.0, explained_variance=0.5, dead=0.0)
    described = TrainingMetadata(
        format=1,
        complete=True,
        saes=[TrainedEntry(replace(record, name=name), f"{name}/", metrics, of_sae) for name, of_sae in files.items()],
        steps=1,
        rows=1,
        seconds=1.0,
        provenance=identity(10),
        pod_job_version="test",
        packages={},
        written=TIME,
    )
    folder.replace(SAES_METADATA, records.encode(described))


def random_rows(shape: SaeShape, count: int = 64) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((count, shape.input_width)).astype(np.float32)


def outputs(sae: TrainedSae, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns latents and reconstructions, as the architectures compute them."""
    params = {name: jnp.asarray(values) for name, values in sae.parameters.items()}
    latents, output = both(sae.shape, params, jnp.asarray(rows))
    return np.asarray(latents), np.asarray(output)


@partial(jax.jit, static_argnums=0)
def both(shape: SaeShape, params: dict[str, jax.Array], rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    latents = encode(shape, params, rows)
    return latents, decode(shape, params, latents, rows)
