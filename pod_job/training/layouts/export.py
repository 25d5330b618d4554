"""Writes SAEs of any layout that is read in another one."""

from collections.abc import Callable, Sequence
from pathlib import Path

from pod_job.config.train import Architecture
from pod_job.errors import JobError
from pod_job.storage.open import open_folder
from pod_job.training.layouts.circuit_tracer import layer_file, transcoded, write_transcoders
from pod_job.training.layouts.dictionary_learning import write_dictionary
from pod_job.training.layouts.read import read_saes
from pod_job.training.layouts.sae_lens import write_sae

WRITERS = {"sae-lens": write_sae, "dictionary-learning": write_dictionary}
"""Layouts with a folder for each SAE; circuit-tracer has one for all."""


def export_saes(
    path: str | Path, out: str | Path, layout: str, only: Sequence[str], report: Callable[[str], object]
) -> None:
    """Writes the SAEs of a training run or of an SAE's folder: each below OUT/NAME, of circuit-tracer all in OUT.

    Args:
        only: names of those that are wanted; empty: all of them.
        report: takes a line for each SAE, and for what the layout's reader will miss.
    Raises:
        JobError: `path` has no such SAE, or the layout has no place for one of them.
    """
    saes, folder = read_saes(path, only), open_folder(out)
    if folder.url == open_folder(path).url:
        raise JobError(f"OUT={folder.url}: is where the SAEs are read; give another folder")
    if layout in WRITERS:
        for name, sae in saes.items():
            WRITERS[layout](folder, f"{name}/", sae)
            report(f"{folder.url}/{name}")
        return
    missing = write_transcoders(folder, list(saes.values()))
    for sae in saes.values():
        report(f"{folder.url}/{layer_file(transcoded(sae)[0].layer)}")
    if any(sae.shape.architecture is Architecture.topk for sae in saes.values()):
        report("circuit-tracer up to 0.5.0 takes TopK transcoders for ReLU; use its repository's main branch")
    if missing:
        layers = ", ".join(map(str, missing))
        report(f"circuit-tracer reads transcoders of every layer from 0; those of layers {layers} are missing")
