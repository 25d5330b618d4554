"""Location of a model: a folder, `gs://bucket/prefix` or a name on the Hugging Face hub. No jax.

Weights stay where they are. What else a model has, its configuration and tokenizer, is small: it is fetched to this
machine.
"""

import fnmatch
import hashlib
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pod_job.errors import JobError
from pod_job.storage.folder import Folder, Readable
from pod_job.storage.open import open_folder

SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "chat_template*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "tekken.json",
    "merges.txt",
)


@dataclass(frozen=True)
class ModelFiles:
    """A model by the name that provenance records: the local folder of its small files, and where its weights lie."""

    name: str
    directory: Path
    weights: Readable


def find_model(path: str, revision: str | None = None) -> ModelFiles:
    """Finds the files of `model.path`.

    Raises:
        JobError: neither a folder, nor a place in a bucket, nor a model that the hub (or its cache) can give.
    """
    if path.startswith("gs://"):
        folder = open_folder(path, "model.path")
        return ModelFiles(path.rstrip("/").rpartition("/")[2], fetch_small_files(folder), folder)
    if Path(path).is_dir():
        return ModelFiles(Path(path).resolve().name, Path(path), open_folder(path, "model.path", follow_links=True))
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", path) or Path(path).exists():
        raise JobError(
            f"model.path={path} is not a folder; "
            "give a Hugging Face folder or a hub name (org/model), or gs://bucket/folder"
        )
    from pod_job.checkpoints.hub import fetch_model

    directory, weights = fetch_model(path, revision, SMALL_FILES)
    return ModelFiles(path, directory, weights)


def small_files(names: list[str]) -> list[str]:
    """Returns those of a model's files that its configuration and tokenizer are made of."""
    return [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in SMALL_FILES)]


def fetch_small_files(folder: Folder) -> Path:
    """Returns a local folder with the small files of a model in a bucket, fetched once for each content they have."""
    names = small_files(folder.names(""))
    if "config.json" not in names:
        raise JobError(f"model.path={folder.url} has no config.json; give the folder of a Hugging Face model")
    digest = hashlib.sha256(folder.url.encode())
    for name in names:
        digest.update(f"{name} {folder.stat(name)}".encode())
    cached = cache_folder() / digest.hexdigest()
    if not cached.is_dir():
        with tempfile.TemporaryDirectory(dir=cached.parent) as scratch:
            fetched = Path(scratch) / "model"
            fetched.mkdir()
            for name in names:
                (fetched / name).write_bytes(folder.read(name))
            try:
                os.rename(fetched, cached)
            except OSError:
                if not cached.is_dir():  # another process of this machine was first
                    raise
    return cached


def cache_folder() -> Path:
    """Returns a folder in the cache of the Hugging Face libraries, which HF_HOME moves."""
    from huggingface_hub import cached_assets_path

    return cached_assets_path("tpu-pod-activations", namespace="models")
