"""Location of a model: a folder, `gs://bucket/prefix` or a name on the Hugging Face hub. No jax.

Weights stay where they are. What else a model has, its configuration and tokenizer, is small: it is fetched to this
machine.
"""

import fnmatch
import hashlib
import os
import re
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pod_job.checkpoints.cache import cache_folder
from pod_job.errors import JobError
from pod_job.formats.json_text import read_json_file
from pod_job.storage.folder import Folder, Readable
from pod_job.storage.open import open_folder
from pod_job.terminal import one_line

TOKENIZER_FILES = (
    "tokenizer*",
    "*.tokenizer",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*.json",
    "vocab.txt",
    "vocab.bpe",
    "merges.txt",
    "bpe.codes",
    "normalizer.json",
    "emoji.json",
    "byte_maps.json",
    "entity_vocab.json",
    "word_*.json",
    "*.model",
    "*.tiktoken",
    "tekken.json",
    "chat_template*",
    "additional_chat_templates/*",
)
"""Patterns of the files that transformers makes a tokenizer and its chat template from."""
ADAPTER = "adapter_config.json"
"""The file by which PEFT, and transformers where PEFT is installed, knows an adapter."""
SMALL_FILES = ("config.json", "generation_config.json", ADAPTER, *TOKENIZER_FILES)


@dataclass(frozen=True)
class ModelFiles:
    """A model by the name that provenance records: the local folder of its small files, and where its weights lie."""

    name: str
    directory: Path
    weights: Readable


def find_model(path: str, revision: str | None = None) -> ModelFiles:
    """Finds the files of `model.path`.

    Raises:
        JobError: neither a folder, nor a place in a bucket, nor a model that the hub (or its cache) can give; or an
            adapter is there, alone or beside a model: transformers would apply it.
    """
    files = locate_model(path, revision)
    if (adapter := files.directory / ADAPTER).exists():
        raise JobError(
            f"model.path={path}: {ADAPTER} says that an adapter{of_base(adapter)} is there, and adapters are not "
            "applied; merge it (merge_and_unload of PEFT) and give the folder where the merged model is saved, or a "
            f"copy without {ADAPTER} for the weights beside it as they are"
        )
    return files


def of_base(adapter: Path) -> str:
    """Returns which model an adapter is of, as its configuration says; "" where it does not."""
    try:
        base = read_json_file(adapter).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError):
        return ""
    return f" of {one_line(base)[:100]}" if isinstance(base, str) and base else ""


def locate_model(path: str, revision: str | None = None) -> ModelFiles:
    """Returns where the files of `model.path` are. JobError where it is no place of a model."""
    if path.startswith("gs://"):
        folder = open_folder(path, "model.path")
        return ModelFiles(path.rstrip("/").rpartition("/")[2], fetch_small_files(folder), folder)
    if os.path.isdir(path):
        return ModelFiles(Path(path).resolve().name, Path(path), open_folder(path, "model.path", follow_links=True))
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", path) or os.path.exists(path):
        raise JobError(
            f"model.path={path} is not a folder; "
            "give a Hugging Face folder or a hub name (org/model), or gs://bucket/folder"
        )
    from pod_job.checkpoints.hub import fetch_model

    directory, weights = fetch_model(path, revision, SMALL_FILES)
    return ModelFiles(path, directory, weights)


def small_files(names: Iterable[str], patterns: Sequence[str] = SMALL_FILES) -> list[str]:
    """Returns those of a model's files that match a pattern; a `*` stays within a folder."""

    def matches(name: str, pattern: str) -> bool:
        return name.count("/") == pattern.count("/") and fnmatch.fnmatchcase(name, pattern)

    return [name for name in names if any(matches(name, pattern) for pattern in patterns)]


def local_small_files(directory: Path, patterns: Sequence[str] = SMALL_FILES) -> list[str]:
    """Returns the names of the files in a local folder that match a pattern, sorted."""
    paths = {path for pattern in patterns for path in directory.glob(pattern) if path.is_file()}
    return sorted(path.relative_to(directory).as_posix() for path in paths)


def fetch_small_files(folder: Folder) -> Path:
    """Returns a local folder with the small files of a model in a bucket, fetched once for each content they have."""
    names = small_files(folder.names(""))
    if not {"config.json", ADAPTER}.intersection(names):
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
                (fetched / name).parent.mkdir(exist_ok=True)
                (fetched / name).write_bytes(folder.read(name))
            try:
                os.rename(fetched, cached)
            except OSError:
                if not cached.is_dir():  # another process of this machine was first
                    raise
    return cached
