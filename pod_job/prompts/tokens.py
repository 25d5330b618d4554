"""Prompts to token ids, with the model's own tokenizer and chat template. No jax."""

import functools
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int32

from pod_job.config.schema import JobConfig, TooLong
from pod_job.config.tasks import OnBroken
from pod_job.errors import JobError, first_line
from pod_job.prompts.chat import render_chats
from pod_job.prompts.sources.sample import BrokenTask, Reason, Sample
from pod_job.prompts.text_ends import PROBE, TextEnds, text_ends

FILES = ("tokenizer*", "chat_template*")
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
"""Files that hold a tokenizer's vocabulary; without any, transformers makes a tokenizer of one token."""


@dataclass(frozen=True)
class Prompt:
    """One tokenized sample.

    `cut`: leading tokens were dropped to fit. `doubled_bos`: the text had the tokenizer's begin (or end) token itself,
    and keeps one of the two.
    """

    sample: Sample
    token_ids: Int32[np.ndarray, " length"]
    cut: bool
    doubled_bos: bool = False


@dataclass(frozen=True)
class PromptRules:
    """Rules by which samples become prompts, the same on every host and at every start of a run.

    Attributes:
        seq_len: most tokens of a prompt; `too_long` tells what becomes of a longer one.
        vocab: rows of the model's embedding, which every id must be one of; None: not known.
        on_broken: whether a prompt that cannot be used is refused or left out.
        template_date: the day that a chat template takes for today; None: the present one.
    """

    seq_len: int
    too_long: TooLong
    vocab: int | None = None
    on_broken: OnBroken = OnBroken.refuse
    template_date: date | None = None

    @staticmethod
    def of(config: JobConfig, vocab: int | None = None, template_date: date | None = None) -> "PromptRules":
        extract = config.extract
        return PromptRules(extract.seq_len, extract.too_long, vocab, config.tasks.on_broken, template_date)


@dataclass(frozen=True)
class Tokenized:
    """Prompts, in the order of their samples, and what is wrong with the samples that were left out."""

    prompts: list[Prompt]
    skipped: list[BrokenTask]


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
    # Otherwise it advises, on every host, to install a framework that is not needed.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import AutoTokenizer  # imports for seconds

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
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
    tokenizer: Tokenizer,
    samples: Sequence[Sample],
    seq_len: int,
    too_long: TooLong,
    vocab: int | None = None,
    template_date: date | None = None,
) -> list[Prompt]:
    """Returns a prompt for each sample. JobError for one that cannot be used; arguments are those of PromptRules."""
    rules = PromptRules(seq_len, too_long, vocab, template_date=template_date)
    return usable_prompts(tokenizer, samples, rules).prompts


def usable_prompts(tokenizer: Tokenizer, samples: Sequence[Sample], rules: PromptRules) -> Tokenized:
    """Returns token ids as the model expects them (with its begin token, where it has one), within `rules.seq_len`.

    Text is tokenized, chats are rendered by the model's template first, token ids stay as they are.

    Raises:
        JobError: under `on_broken=refuse`, a prompt that is too long, that has no token of its own or one that the
            model has no embedding for, or that the tokenizer or the template refuses; or a template without an end.
    """
    prompts, skipped, ends = [], [], text_ends(tokenizer)
    for sample, encoded in zip(samples, encode(tokenizer, samples, rules.template_date), strict=True):
        try:
            prompts.append(to_prompt(sample, encoded, ends, rules))
        except BrokenTask as broken:
            if rules.on_broken is OnBroken.refuse:
                raise JobError(f"{broken}; or leave such tasks out with tasks.on_broken=skip") from broken
            skipped.append(broken)
    return Tokenized(prompts, skipped)


def to_prompt(sample: Sample, encoded: Sequence[int] | BrokenTask, ends: TextEnds, rules: PromptRules) -> Prompt:
    """Returns one prompt of the ids that the tokenizer gave; BrokenTask for one that cannot be used."""
    if isinstance(encoded, BrokenTask):
        raise encoded
    is_text = isinstance(sample.prompt, str)
    given = np.asarray(encoded, np.int64)
    token_ids = ends.once(given) if is_text else given
    if len(token_ids) <= (len(ends.before) + len(ends.after) if is_text else 0):
        raise BrokenTask(f"{sample} has no token of its own; remove it from the tasks", Reason.blank)
    if rules.vocab is not None and len(outside := token_ids[(token_ids < 0) | (token_ids >= rules.vocab)]):
        raise BrokenTask(
            f"{sample} has token {outside[0]}, and the model's embedding has {rules.vocab} rows; the tokenizer is "
            "another model's, or has tokens that were added to it alone",
            Reason.token_out_of_vocabulary,
        )
    cut = len(token_ids) > rules.seq_len
    if cut and rules.too_long is TooLong.refuse:
        raise BrokenTask(
            f"{sample} has {len(token_ids)} tokens, more than extract.seq_len={rules.seq_len}; raise it, or keep the "
            "last tokens with extract.too_long=cut",
            Reason.too_long,
        )
    # The last tokens: those that the model would continue.
    return Prompt(sample, token_ids[-rules.seq_len :].astype(np.int32), cut, len(token_ids) < len(given))


def encode(
    tokenizer: Tokenizer, samples: Sequence[Sample], template_date: date | None = None
) -> list[Sequence[int] | BrokenTask]:
    """Returns the token ids of each sample, uncut, or why it has none."""
    prompts = (sample.prompt for sample in samples)
    encoded: list[Any] = [prompt.tolist() if isinstance(prompt, np.ndarray) else prompt for prompt in prompts]
    chats = [i for i, sample in enumerate(samples) if sample.is_chat]
    for i, text in zip(chats, render_chats(tokenizer, [samples[i] for i in chats], template_date), strict=True):
        encoded[i] = text
    written = set(chats)  # a template writes its own begin token
    for special in (True, False):
        group = [i for i, text in enumerate(encoded) if isinstance(text, str) and (i not in written) is special]
        for i, ids in zip(group, encode_texts(tokenizer, [encoded[i] for i in group], special), strict=True):
            encoded[i] = ids if isinstance(ids, list) else refused_by_tokenizer(samples[i], ids)
    return encoded


def encode_texts(tokenizer: Tokenizer, texts: list[str], special: bool) -> list[list[int] | BaseException]:
    """Returns the ids of each text, in one call of the tokenizer; where that fails, of each alone, or its error."""
    if not texts:
        return []
    try:
        return tokenizer(texts, add_special_tokens=special, verbose=False)["input_ids"]
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the tokenizers package is no Exception
        if len(texts) == 1:
            return [error]
    return [ids for text in texts for ids in encode_texts(tokenizer, [text], special)]


def refused_by_tokenizer(sample: Sample, error: BaseException) -> BrokenTask:
    """Returns what the tokenizer says to a text that it fails on."""
    return BrokenTask(
        f"{sample}: the model's tokenizer fails on it ({first_line(error)}); change its text",
        Reason.refused_by_tokenizer,
    )
