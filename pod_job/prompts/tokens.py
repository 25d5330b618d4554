"""Prompts to token ids, with the model's own tokenizer and chat template. No jax."""

import functools
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int32

from pod_job.config.schema import TooLong
from pod_job.errors import JobError
from pod_job.prompts.sources.sample import Sample

FILES = ("tokenizer*", "chat_template*")
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
"""Files that hold a tokenizer's vocabulary; without any, transformers makes a tokenizer of one token."""
PROBE = "The quick brown fox jumps over 13 lazy dogs."
"""Text of many different words and characters, which a tokenizer that works tells apart."""


@dataclass(frozen=True)
class Prompt:
    """One tokenized sample. `cut`: leading tokens were dropped to fit."""

    sample: Sample
    token_ids: Int32[np.ndarray, " length"]
    cut: bool


@runtime_checkable
class Tokenizer(Protocol):
    """The parts of a Hugging Face tokenizer (`PreTrainedTokenizerBase`) that are used here."""

    chat_template: Any
    all_special_ids: list[int]
    added_tokens_decoder: dict[int, Any]

    def __call__(self, text: Any, *, add_special_tokens: bool = True, verbose: bool = True) -> Any: ...
    def apply_chat_template(self, conversation: Any, *, tokenize: bool, add_generation_prompt: bool) -> Any: ...
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
    # Otherwise it advises, on every host, to install a framework that is not needed.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import AutoTokenizer  # imports for seconds

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder))
        tokens = len(set(tokenizer(PROBE, add_special_tokens=False)["input_ids"]))
    except Exception as error:  # whatever a damaged file makes transformers, tokenizers or sentencepiece raise
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise JobError(
            f"model.path={folder}: its tokenizer cannot be loaded ({reason}); copy its files again"
        ) from error
    if tokens < 2:
        raise JobError(f"model.path={folder}: its tokenizer gives all text one token; copy tokenizer.json again")
    return tokenizer


def tokenizer_fingerprint(folder: Path) -> str:
    """Returns the SHA-256 over the files of the tokenizer and its chat template."""
    digest = hashlib.sha256()
    for path in sorted(path for pattern in FILES for path in folder.glob(pattern)):
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
            end = json.loads(path.read_text()).get("eos_token_id") if path.exists() else None
        except (ValueError, AttributeError) as error:
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


def tokenize(
    tokenizer: Tokenizer, samples: Sequence[Sample], seq_len: int, too_long: TooLong, vocab: int | None = None
) -> list[Prompt]:
    """Returns token ids as the model expects them (with its begin token, where it has one), at most `seq_len` each.

    Text is tokenized, chats are rendered by the model's template first, token ids stay as they are. A longer prompt
    keeps its last `seq_len` tokens, or is refused.

    Args:
        vocab: rows of the model's embedding, which every id must be one of.
    Raises:
        JobError: a prompt that is too long under `too_long=refuse`, that has no token at all or one that the model
            has no embedding for, or a chat that the template refuses.
    """
    tokenized = []
    for sample, ids in zip(samples, encode(tokenizer, samples), strict=True):
        if len(ids) == 0:
            raise JobError(f"task {sample.task_id}, sample {sample.sample_idx} has no token; remove it from the tasks")
        token_ids = np.asarray(ids)
        if vocab is not None and len(outside := token_ids[(token_ids < 0) | (token_ids >= vocab)]):
            raise JobError(
                f"task {sample.task_id}, sample {sample.sample_idx} has token {outside[0]}, and the model's embedding "
                f"has {vocab} rows; the tokenizer is another model's, or has tokens that were added to it alone"
            )
        if len(ids) > seq_len and too_long is TooLong.refuse:
            raise JobError(
                f"task {sample.task_id}, sample {sample.sample_idx} has {len(ids)} tokens, more than "
                f"extract.seq_len={seq_len}; raise it, or keep the last tokens with extract.too_long=cut"
            )
        tokenized.append(Prompt(sample, np.array(token_ids[-seq_len:], np.int32), len(ids) > seq_len))
    return tokenized


def encode(tokenizer: Tokenizer, samples: Sequence[Sample]) -> list[Sequence[int]]:
    """Returns the token ids of each sample, uncut; texts and chats go through the tokenizer in one call each."""
    prompts = (sample.prompt for sample in samples)
    encoded: list[Any] = [prompt.tolist() if isinstance(prompt, np.ndarray) else prompt for prompt in prompts]
    texts = {i: prompt for i, prompt in enumerate(encoded) if isinstance(prompt, str)}
    chats = {i: render_chat(tokenizer, sample) for i, sample in enumerate(samples) if sample.is_chat}
    # A template writes its own begin token.
    for group, special in ((texts, True), (chats, False)):
        ids = tokenizer(list(group.values()), add_special_tokens=special, verbose=False)["input_ids"] if group else []
        for i, token_ids in zip(group, ids, strict=True):
            encoded[i] = token_ids
    return encoded


def render_chat(tokenizer: Tokenizer, sample: Sample) -> str:
    """Returns the chat as the model's template writes it, with the opening of an answer unless it ends in one."""
    messages: Any = sample.prompt
    opening = messages[-1]["role"] != "assistant"
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=opening)
    except (_template_error(), ValueError) as error:
        raise JobError(
            f"task {sample.task_id}, sample {sample.sample_idx}: the model's chat template refuses it ({error})"
        ) from error


def _template_error() -> type[Exception]:
    from jinja2 import TemplateError  # slow to import, and a plan needs no templates

    return TemplateError
