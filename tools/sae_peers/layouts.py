"""Compares SAEs as SAELens and dictionary_learning load them with ours: `python -m tools.sae_peers.layouts`.

Writes an SAE of every architecture with random parameters, folded from scaled rows, in each layout; loads it in the
environment `trainers` of `tools.peers`, and prints the largest difference of latents and outputs.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from pod_job.commands.command_line import exit_status
from pod_job.config.train import Architecture
from pod_job.errors import JobError
from pod_job.formats.safetensors import write_parts
from pod_job.storage.open import open_folder
from pod_job.training.architectures.kinds import decode, encode
from pod_job.training.architectures.shape import SaeShape
from pod_job.training.layouts.dictionary_learning import write_dictionary
from pod_job.training.layouts.sae_lens import write_sae
from pod_job.training.saes import SaeOrigin, TrainedSae, folded, parameter_shapes
from tools.peers import make, quiet_environment

WIDTH, LATENTS, ROWS, SCALE = 64, 512, 256, 0.7
LIMIT = 1e-5
"""Largest difference allowed, relative to the largest value."""


def cases() -> dict[str, SaeShape]:
    """Returns the shapes by name: SAEs of every architecture, and the transcoders that SAELens knows."""
    shapes = {}
    for kind in Architecture:
        k = 16 if kind.has_k else None
        groups = (64, 192, 256) if kind is Architecture.matryoshka else ()
        for name, transcoder, skip in (("sae", False, False), ("transcoder", True, False), ("skip", True, True)):
            if transcoder and kind in (Architecture.gated, Architecture.topk):
                continue
            shapes[f"{kind.value}_{name}"] = SaeShape(
                architecture=kind,
                input_width=WIDTH,
                output_width=WIDTH // 2 if transcoder else WIDTH,
                latents=LATENTS,
                k=k,
                group_sizes=groups,
                transcoder=transcoder,
                skip=skip,
            )
    return shapes


def trained(shape: SaeShape) -> tuple[TrainedSae, np.ndarray, np.ndarray, np.ndarray]:
    """Returns an SAE, rows, their latents and their reconstructions as in training, where rows are scaled."""
    rng = np.random.default_rng(0)
    sizes = parameter_shapes(shape)
    parameters = {name: (rng.standard_normal(size) / 4).astype(np.float32) for name, size in sizes.items()}
    parameters |= {"threshold": np.array(0.5, np.float32)} if "threshold" in sizes else {}
    rows = rng.standard_normal((ROWS, shape.input_width)).astype(np.float32)
    target_scale = 1.3 if shape.transcoder else SCALE
    params, scaled = {name: jnp.asarray(value) for name, value in parameters.items()}, jnp.asarray(rows * SCALE)
    latents = encode(shape, params, scaled)
    output = np.asarray(decode(shape, params, latents, scaled)) / target_scale
    taps, target = (("layer_3.mlp_in",), "layer_3.mlp_out") if shape.transcoder else (("layer_3",), None)
    origin = SaeOrigin(model="org/model", taps=taps, target=target)
    sae = TrainedSae(shape, folded(shape, parameters, SCALE, target_scale), origin)
    return sae, rows, np.asarray(latents) / target_scale, output


def compare(folder: Path) -> dict[str, float]:
    """Returns the largest difference of each case and layout, relative to the largest value."""
    for name, shape in cases().items():
        sae, rows, latents, output = trained(shape)
        folders = {"sae-lens": write_sae} | ({} if shape.transcoder else {"dictionary-learning": write_dictionary})
        for layout, write in folders.items():
            place = folder / f"{layout} {name}"
            write(open_folder(place), "", sae)
            tensors = {"rows": rows, "latents": latents, "output": output.astype(np.float32)}
            (place / "expected.safetensors").write_bytes(b"".join(write_parts(tensors)))
    child = Path(__file__).with_name("load_layouts.py")
    done = subprocess.run(
        [make("trainers"), child, folder], env=quiet_environment(), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise JobError(f"{child.name} failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def run() -> int:
    """Prints a line for each layout and architecture; returns 1 if one differs."""
    with tempfile.TemporaryDirectory() as folder:
        differences = compare(Path(folder))
    for name, difference in differences.items():
        print(f"{name:40} {difference:.1e}")
    return int(max(differences.values()) > LIMIT)


if __name__ == "__main__":
    sys.exit(exit_status(run))
