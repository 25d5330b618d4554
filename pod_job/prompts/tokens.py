"""Prompts to token ids, with the model's own tokenizer and chat template. No jax."""

from collections.abc import Iterator, Sequence
from datetime import date
from typing import Any

import numpy as np
from jaxtyping import Integer

from pod_job.config.extract import TooLong
from pod_job.config.tasks import OnBroken
from pod_job.errors import JobError, first_line
from pod_job.prompts.chat import render_chats
from pod_job.prompts.prompt import Prompt as Prompt
from pod_job.prompts.prompt import PromptRules as PromptRules
from pod_job.prompts.prompt import Tokenized as Tokenized
from pod_job.prompts.row_choice import chosen_rows
from pod_job.prompts.sources.sample import BrokenTask, Reason, Sample
from pod_job.prompts.special import special_ids, special_tokens
from pod_job.prompts.text_ends import TextEnds, text_ends
from pod_job.prompts.tokenizer import Tokenizer as Tokenizer
from pod_job.prompts.tokenizer import TokenizerFolder as TokenizerFolder
from pod_job.prompts.tokenizer import check_template as check_template
from pod_job.prompts.tokenizer import end_tokens as end_tokens
from pod_job.prompts.tokenizer import has_vocabulary as has_vocabulary
from pod_job.prompts.tokenizer import load_tokenizer as load_tokenizer
from pod_job.prompts.tokenizer import tokenizer_fingerprint as tokenizer_fingerprint
from pod_job.prompts.windows import parts


def tokenize(
    tokenizer: Tokenizer,
    samples: Sequence[Sample],
    seq_len: int,
    too_long: TooLong,
    vocab: int | None = None,
    template_date: date | None = None,
) -> list[Prompt]:
    """Returns the prompts of samples. JobError for one that cannot be used; arguments are those of PromptRules."""
    rules = PromptRules(seq_len, too_long, vocab, template_date=template_date)
    return usable_prompts(tokenizer, samples, rules).prompts


def usable_prompts(tokenizer: Tokenizer, samples: Sequence[Sample], rules: PromptRules) -> Tokenized:
    """Returns token ids as the model expects them (with its begin token, where it has one), within `rules.seq_len`.

    Text is tokenized, chats are rendered by the model's template first, token ids stay as they are. With
    `too_long=split` a sample may become several prompts, which follow each other.

    Raises:
        JobError: under `on_broken=refuse`, a prompt that is too long, that has no token of its own or one that the
            model has no embedding for, or that the tokenizer or the template refuses; or a template without an end.
    """
    prompts, skipped = [], []
    ends, special = text_ends(tokenizer), special_ids(tokenizer)
    for sample, encoded in zip(samples, encode(tokenizer, samples, rules.template_date), strict=True):
        try:
            document, doubled = checked_ids(sample, encoded, ends, rules)
            prompts += document_prompts(sample, document, ends, special, rules, doubled)
        except BrokenTask as broken:
            if rules.on_broken is OnBroken.refuse:
                raise JobError(f"{broken}; or leave such tasks out with tasks.on_broken=skip") from broken
            skipped.append(broken)
    return Tokenized(prompts, skipped, len(samples) - len(skipped), rules.drops, rules.windowed)


def checked_ids(
    sample: Sample, encoded: Sequence[int] | BrokenTask, ends: TextEnds, rules: PromptRules
) -> tuple[Integer[np.ndarray, " length"], bool]:
    """Returns a document's ids, and whether an end that was there twice is there once; BrokenTask where not usable."""
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
    if len(token_ids) > rules.seq_len and rules.too_long is TooLong.refuse:
        raise BrokenTask(
            f"{sample} has {len(token_ids)} tokens, more than extract.seq_len={rules.seq_len}; raise it, or set "
            "extract.too_long=split, or head or tail to keep a part",
            Reason.too_long,
        )
    return token_ids, len(token_ids) < len(given)


def document_prompts(
    sample: Sample,
    document: Integer[np.ndarray, " length"],
    ends: TextEnds,
    special: set[int],
    rules: PromptRules,
    doubled: bool,
) -> Iterator[Prompt]:
    """Yields the prompts of a document, whose ids are given, with the choice of their rows."""
    total = len(document)
    if rules.too_long is TooLong.cut:
        document = document[-rules.seq_len :]
    marks = special_tokens(document, sample.is_chat, special)
    begin = len(ends.before) if tuple(document[: len(ends.before)].tolist()) == ends.before else 0
    origins = list(parts(len(document), begin, rules))
    dropped = total - len(origins[0].positions) if rules.drops else 0
    for origin in origins:
        places = origin.positions
        candidates = np.ones(len(places), bool)
        candidates[origin.repeated.start : origin.repeated.stop] = False
        yield Prompt(
            sample,
            document[places].astype(np.int32),
            dropped,
            doubled and origin.window == 0,
            marks[places],
            chosen_rows(sample, places, candidates, marks[places], rules.extract),
            origin if rules.windowed else None,
        )


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
