"""Prompts to token ids, with the model's own tokenizer and chat template. No jax."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np
from jaxtyping import Integer, Shaped

from pod_job.config.extract import TooLong
from pod_job.config.tasks import OnBroken
from pod_job.errors import JobError
from pod_job.prompts.chat import Rendered, render_chats
from pod_job.prompts.concat import concat_rules
from pod_job.prompts.prompt import Prompt, PromptRules, Tokenized
from pod_job.prompts.roles import RoleTokens, tokens_with_roles
from pod_job.prompts.row_choice import chosen_rows
from pod_job.prompts.sources.sample import BrokenTask, Reason, Sample
from pod_job.prompts.special import special_ids, special_tokens
from pod_job.prompts.text_ends import TextEnds, text_ends
from pod_job.prompts.tokenizer import Tokenizer, plain_backend, refused_by_tokenizer
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
    `too_long=split` a sample may become several prompts, which follow each other. With `concat` prompts are whole
    documents, without begin token, which `joined` makes rows of.

    Raises:
        JobError: under `on_broken=refuse`, a prompt that is too long, that has no token of its own or one that the
            model has no embedding for, or that the tokenizer or the template refuses; or a template without an end.
    """
    prompts, skipped, special = [], [], special_ids(tokenizer)
    ends = TextEnds((), ()) if rules.concat is not None else text_ends(tokenizer)
    for sample, encoded in zip(samples, encode(tokenizer, samples, rules), strict=True):
        try:
            document = checked_document(sample, encoded, ends, rules)
            prompts += document_prompts(sample, document, ends, special, rules)
        except BrokenTask as broken:
            if rules.on_broken is OnBroken.refuse:
                raise refusal(broken) from broken
            skipped.append(broken)
    concat = None if rules.concat is None else concat_rules(tokenizer, rules.concat, rules.extract)
    return Tokenized(prompts, skipped, len(samples) - len(skipped), rules.drops, rules.columns, concat)


def refusal(broken: BrokenTask) -> JobError:
    """Returns the error for a task that cannot be used, under `on_broken=refuse`."""
    return JobError(f"{broken}; or leave such tasks out with tasks.on_broken=skip")


@dataclass(frozen=True)
class Document:
    """A sample's token ids, uncut, the role of each where roles are wanted, and whether an end was there twice."""

    token_ids: Integer[np.ndarray, " length"]
    roles: Shaped[np.ndarray, " length"] | None
    doubled: bool


def checked_document(
    sample: Sample, encoded: Sequence[int] | RoleTokens | BrokenTask, ends: TextEnds, rules: PromptRules
) -> Document:
    """Returns a document of the ids that the tokenizer gave. BrokenTask for one that cannot be used.

    Raises:
        JobError: roles are wanted of a sample that is no chat.
    """
    if isinstance(encoded, BrokenTask):
        raise encoded
    is_text = isinstance(sample.prompt, str)
    if rules.extract.wants_roles and not isinstance(encoded, RoleTokens):
        raise JobError(f"{sample} is no chat, so its tokens have no roles; use extract.roles=[] and no column role")
    roles = encoded.roles if isinstance(encoded, RoleTokens) else None
    given = np.asarray(encoded.token_ids if isinstance(encoded, RoleTokens) else encoded, np.int64)
    token_ids = ends.once(given) if is_text else given
    if len(token_ids) <= (len(ends.before) + len(ends.after) if is_text else 0):
        raise BrokenTask(f"{sample} has no token of its own; remove it from the tasks", Reason.blank)
    if rules.vocab is not None and len(outside := token_ids[(token_ids < 0) | (token_ids >= rules.vocab)]):
        raise BrokenTask(
            f"{sample} has token {outside[0]}, and the model's embedding has {rules.vocab} rows; the tokenizer is "
            "another model's, or has tokens that were added to it alone",
            Reason.token_out_of_vocabulary,
        )
    if len(token_ids) > rules.seq_len and rules.too_long is TooLong.refuse and rules.concat is None:
        raise BrokenTask(
            f"{sample} has {len(token_ids)} tokens, more than extract.seq_len={rules.seq_len}; raise it, or set "
            "extract.too_long=split, or head or tail to keep a part",
            Reason.too_long,
            len(token_ids),
        )
    return Document(token_ids, roles, len(token_ids) < len(given))


def document_prompts(
    sample: Sample, document: Document, ends: TextEnds, special: set[int], rules: PromptRules
) -> Iterator[Prompt]:
    """Yields the prompts of a document, with the choice of their rows."""
    total = len(document.token_ids)
    kept = slice(-rules.seq_len if rules.too_long is TooLong.cut else 0, None)
    token_ids, roles = document.token_ids[kept], None if document.roles is None else document.roles[kept]
    marks = special_tokens(token_ids, sample.is_chat, special)
    begin = len(ends.before) if tuple(token_ids[: len(ends.before)].tolist()) == ends.before else 0
    origins = list(parts(len(token_ids), begin, rules))
    dropped = total - len(origins[0].positions) if rules.drops else 0
    for origin in origins:
        places = origin.positions
        candidates = np.ones(len(places), bool)
        candidates[origin.repeated.start : origin.repeated.stop] = False
        if roles is not None and rules.extract.roles:
            candidates &= np.isin(roles[places], rules.extract.roles)
        yield Prompt(
            sample,
            token_ids[places].astype(np.int32),
            dropped,
            document.doubled and origin.window == 0,
            marks[places],
            chosen_rows(sample, places, candidates, marks[places], rules.extract),
            origin if rules.windowed else None,
            None if roles is None else roles[places],
        )


def encode(
    tokenizer: Tokenizer, samples: Sequence[Sample], rules: PromptRules
) -> list[Sequence[int] | RoleTokens | BrokenTask]:
    """Returns the token ids of each sample, uncut, or why it has none; the roles of a chat's where they are wanted."""
    settings = rules.chat_settings
    prompts = (sample.prompt for sample in samples)
    encoded: list[Any] = [prompt.tolist() if isinstance(prompt, np.ndarray) else prompt for prompt in prompts]
    chats = [i for i, sample in enumerate(samples) if sample.is_chat]
    for i, chat in zip(chats, render_chats(tokenizer, [samples[i] for i in chats], settings), strict=True):
        encoded[i] = chat if isinstance(chat, BrokenTask) else chat.text
        if settings.roles and isinstance(chat, Rendered):
            encoded[i] = tokens_with_roles(tokenizer, samples[i], chat)
    written = set(chats)  # a template writes its own begin token
    for special in (True, False):
        group = [i for i, text in enumerate(encoded) if isinstance(text, str) and (i not in written) is special]
        for i, ids in zip(
            group, encode_texts(tokenizer, [encoded[i] for i in group], special and rules.concat is None), strict=True
        ):
            encoded[i] = ids if isinstance(ids, list) else refused_by_tokenizer(samples[i], ids)
    return encoded


def encode_texts(tokenizer: Tokenizer, texts: list[str], special: bool) -> list[list[int] | BaseException]:
    """Returns the ids of each text, in one call of the tokenizer; where that fails, of each alone, or its error."""
    if not texts:
        return []
    try:
        if (backend := plain_backend(tokenizer)) is not None:  # without offsets, which take a quarter of the time
            return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=special)]
        return tokenizer(texts, add_special_tokens=special, verbose=False)["input_ids"]
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the tokenizers package is no Exception
        if len(texts) == 1:
            return [error]
    return [ids for text in texts for ids in encode_texts(tokenizer, [text], special)]
