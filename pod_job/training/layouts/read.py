"""SAEs in a folder, in any layout: of a training run, SAELens, dictionary_learning, circuit-tracer or Gemma Scope."""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from pod_job.errors import JobError
from pod_job.run_folder import layout
from pod_job.run_folder.training import check_sae_files, read_training
from pod_job.storage.folder import Folder
from pod_job.storage.open import open_folder
from pod_job.training.layouts import circuit_tracer, dictionary_learning, gemma_scope, sae_lens
from pod_job.training.saes import TrainedSae


def read_saes(path: str | Path, only: Sequence[str] = ()) -> dict[str, TrainedSae]:
    """Returns the SAEs of a folder, by name; of a training run those under saes/.

    Args:
        only: names of those that are wanted; empty: all of them.
    Raises:
        JobError: the folder has no SAE of a layout that is known, one of `only` is not there, or a file is damaged.
    """
    folder = open_folder(path)
    if names := sae_names(folder):
        check_names(only, names, folder.url)
        found = read_trained(folder, [name for name in names if name in only or not only])
    elif has(folder, circuit_tracer.CONFIG):
        read = circuit_tracer.read_transcoders(folder, folder.names("layer_"))
        check_names(only, list(read), folder.url)
        found = {name: sae for name, sae in read.items() if name in only or not only}
    else:
        sae = read_one(folder)
        found = {sae.origin.name or Path(folder.url).name: sae}
        check_names(only, list(found), folder.url)
    return {name: named(sae, name) for name, sae in found.items()}


def read_trained(folder: Folder, names: Sequence[str]) -> dict[str, TrainedSae]:
    """Returns SAEs of a training run. JobError where one is not as the record describes it that ends training."""
    if has(folder, layout.SAES_METADATA):
        trained = read_training(folder)
        for name in names:
            check_sae_files(folder, trained, layout.sae_prefix(name))
    return {name: sae_lens.read_sae(folder, layout.sae_prefix(name)) for name in names}


def read_one(folder: Folder) -> TrainedSae:
    """Returns the SAE of a folder that has one. JobError where its layout is not known."""
    if has(folder, sae_lens.CONFIG):
        return sae_lens.read_sae(folder)
    if has(folder, dictionary_learning.WEIGHTS):
        return dictionary_learning.read_dictionary(folder, "")
    for name in (gemma_scope.FIRST, gemma_scope.SECOND):
        if has(folder, name):
            return gemma_scope.read_gemma_scope(folder, "", name)
    raise JobError(
        f"{folder.url}: no SAE is there; give a training run, or a folder with {sae_lens.CONFIG} (SAELens), "
        f"{dictionary_learning.WEIGHTS} (dictionary_learning), {circuit_tracer.CONFIG} (circuit-tracer) or "
        f"{gemma_scope.FIRST} (Gemma Scope)"
    )


def sae_names(folder: Folder) -> list[str]:
    """Returns the names of the SAEs that a training run has finished."""
    ending = f"/{sae_lens.CONFIG}"
    names = [name.removeprefix(layout.SAES) for name in folder.names(layout.SAES) if name.endswith(ending)]
    return [name.removesuffix(ending) for name in names if name.count("/") == 1]


def has(folder: Folder, name: str) -> bool:
    try:
        folder.read(name, 0, 1)
    except FileNotFoundError:
        return False
    return True


def check_names(only: Sequence[str], names: Sequence[str], url: str) -> None:
    """Raises JobError for a name that is not among those of a folder."""
    if unknown := [name for name in only if name not in names]:
        raise JobError(f"{url}: has no SAE {unknown[0]!r:.80}; it has {', '.join(names)[:300]}")


def named(sae: TrainedSae, name: str) -> TrainedSae:
    return TrainedSae(sae.shape, sae.parameters, msgspec.structs.replace(sae.origin, name=name))
