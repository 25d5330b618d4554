"""The model's own tokenizer: its files, how it is loaded, and the tokens that end a completion. No jax."""

import functools
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from pod_job.errors import JobError, first_line
from pod_job.formats.json_text import read_json_file
from pod_job.prompts.sources.sample import BrokenTask, Reason, Sample
from pod_job.prompts.text_ends import PROBE
from pod_job.prompts.tokenizer_growth import check_file, check_growth
from pod_job.terminal import no_backtraces

FILES = ("tokenizer*", "chat_template*")
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
"""Files that hold a tokenizer's vocabulary; without any, transformers makes a tokenizer of one token."""
MOST_BYTES = 1 << 28
"""Size of a file of a tokenizer; that of Gemma, with 262,144 tokens, has 33 MB."""


@runtime_checkable
class Tokenizer(Protocol):
    """The parts of a Hugging Face tokenizer (`PreTrainedTokenizerBase`) that are used here."""

    chat_template: Any
    special_tokens_map: Any
    all_special_ids: list[int]
    added_tokens_decoder: dict[int, Any]

    def __call__(self, text: Any, *, add_special_tokens: bool = True, verbose: bool = True) -> Any: ...
    def decode(self, token_ids: Any, skip_special_tokens: bool = False, **kwargs: Any) -> Any: ...


@dataclass(frozen=True)
class TokenizerFolder:
    """The folder of a model's tokenizer, which is loaded once, when it is first needed: that takes seconds."""

    path: Path

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.path)


def has_vocabulary(folder: Path) -> bool:
    """Returns True for a folder that a tokenizer can be loaded from."""
    return any((folder / name).is_file() for name in VOCABULARIES)


def load_tokenizer(folder: Path) -> Tokenizer:
    """Returns the folder's Hugging Face tokenizer; JobError where there is none, or one that cannot be loaded."""
    if not has_vocabulary(folder):
        raise JobError(
            f"model.path={folder} has no tokenizer file (none of {', '.join(VOCABULARIES)}); "
            "copy tokenizer.json beside the weights"
        )
    check_sizes(folder)
    # Otherwise it advises, on every host, to install a framework that is not needed.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import AutoTokenizer  # imports for seconds

    try:
        with no_backtraces():
            if (file := folder / "tokenizer.json").is_file():
                check_file(file, f"model.path={folder}")
            tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
            if (backend := getattr(tokenizer, "backend_tokenizer", None)) is not None:
                check_growth(backend, f"model.path={folder}")
            tokens = len(set(tokenizer(PROBE, add_special_tokens=False)["input_ids"]))
    except (KeyboardInterrupt, SystemExit, JobError):
        raise
    except BaseException as error:  # whatever damaged files make the libraries raise; a panic is no Exception
        raise JobError(
            f"model.path={folder}: its tokenizer cannot be loaded ({first_line(error)}); copy its files again"
        ) from error
    if tokens < 2:
        raise JobError(f"model.path={folder}: its tokenizer gives all text one token; copy tokenizer.json again")
    return tokenizer


def check_sizes(folder: Path) -> None:
    """Raises JobError for a file of a tokenizer that is too large to be one: all of it would be read."""
    for path in sorted(path for pattern in (*FILES, *VOCABULARIES) for path in folder.glob(pattern) if path.is_file()):
        if (size := path.stat().st_size) > MOST_BYTES:
            raise JobError(
                f"model.path={folder}: {path.name} has {size:,} bytes, more than {MOST_BYTES:,}, which no tokenizer "
                "has; copy its files again"
            )


def plain_backend(tokenizer: Any) -> Any | None:
    """Returns the tokenizer of the package tokenizers within one whose class adds nothing of its own; None for others.

    It must have been called before, which clears truncation and padding that tokenizer.json may ask for.
    """
    from transformers import PreTrainedTokenizerFast  # imports for seconds, where no tokenizer was loaded

    def calls(kind: type) -> list[Any]:
        return [getattr(kind, name, None) for name in ("__call__", "_encode_plus", "_batch_encode_plus")]

    plain = isinstance(tokenizer, PreTrainedTokenizerFast) and calls(type(tokenizer)) == calls(PreTrainedTokenizerFast)
    return tokenizer.backend_tokenizer if plain else None


def refused_by_tokenizer(sample: Sample, error: BaseException) -> BrokenTask:
    """Returns what the tokenizer says to a text that it fails on."""
    return BrokenTask(
        f"{sample}: the model's tokenizer fails on it ({first_line(error)}); change its text",
        Reason.refused_by_tokenizer,
    )


def tokenizer_fingerprint(folder: Path) -> str:
    """Returns the SHA-256 over the files of the tokenizer and its chat template."""
    digest = hashlib.sha256()
    for path in sorted(path for pattern in FILES for path in folder.glob(pattern) if path.is_file()):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def end_tokens(folder: Path) -> tuple[int, ...]:
    """Returns the tokens that end a completion: of generation_config.json, else of config.json, as Hugging Face does.

    Raises:
        JobError: a file that is not JSON, or an eos_token_id that is no token id.
    """
    for path in (folder / "generation_config.json", folder / "config.json"):
        try:
            end = read_json_file(path).get("eos_token_id") if path.exists() else None
        except (ValueError, AttributeError, OSError) as error:
            raise JobError(f"model.path: {path} is not a JSON object ({error})") from error
        ids: list[Any] = end if isinstance(end, list) else [end]
        if end is not None and not all(type(token) is int and token >= 0 for token in ids):
            raise JobError(f"model.path: {path}: eos_token_id={end!r} is not a token id or a list of them")
        if end is not None:
            return tuple(ids)
    return ()


def check_template(folder: TokenizerFolder) -> None:
    """Raises JobError unless the tokenizer has a chat template."""
    if not folder.tokenizer.chat_template:
        raise JobError(
            f"model.path={folder.path} has no chat template, which chat prompts need; use an instruction-tuned model, "
            "or prompts that are text (tasks.arc.prompt=plain)"
        )
