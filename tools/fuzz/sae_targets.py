"""SAEs of strangers as targets of fuzzing: sound folders of every layout, and what is read of one."""

import io
import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from pod_job.formats.safetensors import write_parts
from pod_job.storage.open import open_folder
from pod_job.training.architectures.shape import Architecture, SaeShape
from pod_job.training.layouts import sae_lens
from pod_job.training.layouts.circuit_tracer import write_transcoders
from pod_job.training.layouts.dictionary_learning import write_dictionary
from pod_job.training.layouts.read import read_saes
from pod_job.training.saes import SaeOrigin, TrainedSae, parameter_shapes
from tools.fuzz.mutate import mutate

WIDTH, LATENTS, GROUPS = 4, 8, (2, 6)
MATRYOSHKA, JUMP_RELU = Architecture.matryoshka, Architecture.jump_relu


def random_sae(architecture: Architecture, transcoder: bool = False, width: int = WIDTH) -> TrainedSae:
    groups = GROUPS if architecture is MATRYOSHKA else ()
    k = 2 if architecture.has_k else None
    sizes = {"input_width": width, "output_width": width, "latents": LATENTS}
    forms = {"k": k, "group_sizes": groups, "transcoder": transcoder, "skip": transcoder}
    shape = SaeShape(architecture=architecture, **sizes, **forms)
    rng = np.random.default_rng(0)
    drawn = parameter_shapes(shape)
    parameters = {name: np.asarray(rng.random(size), np.float32) for name, size in drawn.items()}
    taps, target = (("layer_3.mlp_in",), "layer_3.mlp_out") if transcoder else (("layer_3",), None)
    return TrainedSae(shape, parameters, SaeOrigin(name="one", model="org/model", taps=taps, target=target))


def write_native(root: Path) -> None:
    """Writes an SAE with one threshold, and one with k, each in a folder of its own."""
    for architecture in (MATRYOSHKA, Architecture.topk):
        sae_lens.write_sae(open_folder(root / architecture.value), "", random_sae(architecture))


def write_gemma(root: Path) -> None:
    """Writes both layouts of Gemma Scope, each in a folder of its own."""
    tensors = sae_lens.tensors_of(random_sae(JUMP_RELU, transcoder=True))
    if "W_skip" in tensors:
        tensors["affine_skip_connection"] = tensors.pop("W_skip")
    for name in ("first", "second"):
        (root / name).mkdir()
    np.savez(root / "first/params.npz", **tensors)  # pyright: ignore[reportArgumentType]
    (root / "second/params.safetensors").write_bytes(b"".join(write_parts(tensors)))


def write_set(root: Path) -> None:
    write_transcoders(open_folder(root), [random_sae(JUMP_RELU, transcoder=True)])


def write_torch(root: Path) -> None:
    write_dictionary(open_folder(root), "", random_sae(MATRYOSHKA))


def mutate_member(data: bytes, rng: random.Random) -> bytes:
    """Returns a damaged file; of half of those that are zip archives a member is damaged, and its checksum fits it."""
    if data[:2] != b"PK" or rng.random() < 0.5:
        return mutate(data, rng)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        contents = {member.filename: archive.read(member) for member in archive.infolist()}
    name = rng.choice([name for name, content in contents.items() if content])
    contents[name] = mutate(contents[name], rng)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for member, content in contents.items():
            archive.writestr(member, content)
    return file.getvalue()


def saes_of(root: Path, path: Path) -> list[Any]:
    """Returns every SAE of the folder of the file, by shape, origin and parameters."""
    found = read_saes(path.parent)
    return [
        (name, sae.shape, sae.origin, [v.tobytes() for v in sae.parameters.values()]) for name, sae in found.items()
    ]
