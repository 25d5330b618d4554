"""Writes an ordinary Hugging Face model folder (config, weights, tokenizer) that is either complete or not there."""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from pod_job.errors import JobError
from pod_job.formats.json_text import read_json_file


@dataclass(frozen=True)
class HfModel:
    """The content of a model's folder; weights are stored by checkpoint name, with the array's own dtype."""

    config: Mapping[str, Any]
    weights: Mapping[str, np.ndarray]
    tokenizer: Tokenizer
    tokenizer_config: Mapping[str, Any]
    generation_config: Mapping[str, Any] | None = None


def write_hf_folder(out_dir: Path, model: HfModel) -> Path:
    """Writes config.json, model.safetensors, tokenizer.json, tokenizer_config.json and generation_config.json.

    Everything is written to a sibling folder that is renamed at the end, so `out_dir` never holds half a model. One
    with the same config.json is kept as it is.

    Returns:
        `out_dir`.
    Raises:
        JobError: `out_dir` is there already with something else in it, or cannot be written.
    """
    try:
        out_dir.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{out_dir.name}.", dir=out_dir.parent))
    except OSError as error:
        raise JobError(f"out_dir={out_dir}: cannot be written ({error.strerror}); choose another folder") from error
    try:
        _write_files(staging, model)
        _move_into_place(staging, out_dir)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return out_dir


def _write_files(folder: Path, model: HfModel) -> None:
    _write_json(folder / "config.json", model.config)
    _write_json(folder / "tokenizer_config.json", model.tokenizer_config)
    if model.generation_config is not None:
        _write_json(folder / "generation_config.json", model.generation_config)
    model.tokenizer.save(str(folder / "tokenizer.json"))
    contiguous = {name: np.ascontiguousarray(array) for name, array in model.weights.items()}
    save_file(contiguous, folder / "model.safetensors", metadata={"format": "pt"})
    # mkdtemp and safetensors make private files; a model folder is an ordinary one.
    folder.chmod(0o755)
    (folder / "model.safetensors").chmod(0o644)


def read_config(folder: Path) -> dict[str, Any] | None:
    """Returns the folder's config.json, or None where there is none that can be read."""
    try:
        return read_json_file(folder / "config.json")
    except (OSError, ValueError):
        return None


def _move_into_place(staging: Path, out_dir: Path) -> None:
    try:
        os.rename(staging, out_dir)
    except OSError as error:
        # Someone else finished first, or an earlier call did: the same configuration means the same model.
        if read_config(out_dir) != read_config(staging) or not (out_dir / "model.safetensors").is_file():
            raise JobError(f"out_dir={out_dir}: holds something else already; delete it or choose another") from error


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
