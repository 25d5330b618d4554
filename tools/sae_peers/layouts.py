"""Compares SAEs as other libraries load them with ours: `python -m tools.sae_peers.layouts`.

Writes an SAE of every architecture with random parameters, folded from scaled rows, in the layouts of SAELens,
dictionary_learning and circuit-tracer; loads it with those, in environments of `tools.peers`, and prints the largest
difference of latents and outputs.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from pod_job.commands.command_line import exit_status
from pod_job.config.train import Architecture
from pod_job.errors import JobError
from pod_job.formats.safetensors import write_parts
from pod_job.storage.folder import Folder
from pod_job.storage.open import open_folder
from pod_job.training.architectures.kinds import decode, encode
from pod_job.training.architectures.shape import SaeShape
from pod_job.training.layouts.circuit_tracer import write_transcoders
from pod_job.training.layouts.dictionary_learning import write_dictionary
from pod_job.training.layouts.sae_lens import write_sae
from pod_job.training.saes import SaeOrigin, TrainedSae, folded, parameter_shapes
from tools.peers import make, quiet_environment

WIDTH, LATENTS, ROWS, SCALE = 64, 512, 256, 0.7
LOADERS = {"sae-lens": "trainers", "dictionary-learning": "trainers", "circuit-tracer": "circuit-tracer"}
"""Environment of each layout's library."""
Writer = Callable[[Folder, str, TrainedSae], object]
LIMIT = 1e-5
"""Largest difference allowed, relative to the largest value."""


FORMS = {"sae": (False, WIDTH), "transcoder": (False, WIDTH // 2), "skip": (True, WIDTH // 2)}
FORMS |= {"square": (False, WIDTH), "square_skip": (True, WIDTH)}
"""Whether there is a skip connection, and the width of the output; circuit-tracer has transcoders of one width."""


def cases() -> dict[str, SaeShape]:
    """Returns the shapes by name: SAEs of every architecture, and the transcoders that others know."""
    shapes = {}
    for kind in Architecture:
        for form, (skip, output_width) in FORMS.items():
            # SAELens has no TopK or gated transcoders; circuit-tracer 0.5.0 takes TopK ones for ReLU.
            if form != "sae" and kind in (Architecture.gated, Architecture.topk):
                continue
            shapes[f"{kind.value}_{form}"] = SaeShape(
                architecture=kind,
                input_width=WIDTH,
                output_width=output_width,
                latents=LATENTS,
                k=16 if kind.has_k else None,
                group_sizes=(64, 192, 256) if kind is Architecture.matryoshka else (),
                transcoder=form != "sae",
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
    taps, target = (("layer_0.mlp_in",), "layer_0.mlp_out") if shape.transcoder else (("layer_3",), None)
    origin = SaeOrigin(model="org/model", taps=taps, target=target)
    sae = TrainedSae(shape, folded(shape, parameters, SCALE, target_scale), origin)
    return sae, rows, np.asarray(latents) / target_scale, output


def write_set(folder: Folder, prefix: str, sae: TrainedSae) -> None:
    """Writes a set of one transcoder in circuit-tracer's layout."""
    assert not prefix
    write_transcoders(folder, [sae])


def layouts_of(shape: SaeShape) -> Mapping[str, Writer]:
    """Returns the layouts that such an SAE is tried in, each with its writer."""
    if not shape.transcoder:
        return {"sae-lens": write_sae, "dictionary-learning": write_dictionary}
    return {"circuit-tracer": write_set} if shape.output_width == WIDTH else {"sae-lens": write_sae}


def compare(folder: Path) -> dict[str, float]:
    """Returns the largest difference of each case and layout, relative to the largest value."""
    for name, shape in cases().items():
        sae, rows, latents, output = trained(shape)
        for layout, write in layouts_of(shape).items():
            place = folder / LOADERS[layout] / f"{layout} {name}"
            write(open_folder(place), "", sae)
            tensors = {"rows": rows, "latents": latents, "output": output.astype(np.float32)}
            (place / "expected.safetensors").write_bytes(b"".join(write_parts(tensors)))
    return {
        case: difference
        for environment in dict.fromkeys(LOADERS.values())
        for case, difference in loaded(environment, folder / environment).items()
    }


def loaded(environment: str, folder: Path) -> dict[str, float]:
    """Returns the differences of the SAEs of a folder as the libraries of an environment load them."""
    child = Path(__file__).with_name("load_transcoders.py" if environment == "circuit-tracer" else "load_layouts.py")
    done = subprocess.run(
        [make(environment), child, folder], env=quiet_environment(), capture_output=True, text=True, check=False
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
