"""Documents joined into full rows, with attention across them, as other libraries' activation stores do. No jax.

With `tasks.separator=eos` the rows are those of TransformerLens' `tokenize_and_concatenate` over the documents of a
batch, with `bos` those of SAELens' `concat_and_batch_sequences`; what does not fill a last row is dropped.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int32, Integer

from pod_job.config.extract import Exclude, ExtractConfig, Positions
from pod_job.config.tasks import Separator
from pod_job.errors import JobError
from pod_job.prompts.prompt import ConcatRules, Origin, Prompt, Tokenized
from pod_job.prompts.tokenizer import Tokenizer

BETWEEN = -1
"""Position of tokens that no document has: begin tokens, and separators before a document."""


def concat_rules(tokenizer: Tokenizer, separator: Separator, extract: ExtractConfig) -> ConcatRules:
    """Returns how documents are joined with this tokenizer's tokens.

    Raises:
        JobError: it has no such separator, or a row has no room for a document beside the begin token.
    """
    begin = getattr(tokenizer, "bos_token_id", None)
    between = None if separator is Separator.none else getattr(tokenizer, f"{separator.value}_token_id", None)
    if separator is not Separator.none and between is None:
        raise JobError(
            f"tasks.separator={separator.value}: the model's tokenizer has no {separator.value}_token; use another "
            "separator, or none"
        )
    if extract.seq_len < 2 and begin is not None:
        raise JobError(f"extract.seq_len={extract.seq_len} has no room beside the begin token; use 2 or more")
    return ConcatRules(separator, begin, between, extract)


def joined(parts: Sequence[Tokenized]) -> Tokenized:
    """Returns the prompts of all parts of a batch, in their order; where they are to be joined, as full rows."""
    if not parts:
        return Tokenized([], [])
    prompts, concat = [prompt for part in parts for prompt in part.prompts], parts[0].concat
    skipped, samples = [broken for part in parts for broken in part.skipped], sum(part.samples for part in parts)
    remainder = 0
    if concat is not None:
        prompts, remainder = full_rows(prompts, concat)
    return Tokenized(prompts, skipped, samples, parts[0].drops, parts[0].columns, None, remainder)


def full_rows(documents: Sequence[Prompt], rules: ConcatRules) -> tuple[list[Prompt], int]:
    """Returns the full rows that documents make, and how many of their tokens are left over."""
    rows = [row.prompt(number, documents, rules.extract) for number, row in enumerate(cut_rows(documents, rules))]
    used = sum(int((row.positions != BETWEEN).sum()) for row in rows)  # without begin tokens
    total = sum(len(stream(documents, number, rules)) for number in range(len(documents)))
    return rows, total - used


@dataclass
class Row:
    """A row while it is filled: pieces of token ids, and of each its document and the position of its first token."""

    ids: list[Integer[np.ndarray, " length"]] = field(default_factory=list)
    places: list[tuple[int, int]] = field(default_factory=list)
    length: int = 0

    def add(self, ids: Integer[np.ndarray, " length"], document: int, position: int) -> None:
        self.ids.append(ids)
        self.places.append((document, position))
        self.length += len(ids)

    def prompt(self, number: int, documents: Sequence[Prompt], extract: ExtractConfig) -> Prompt:
        """Returns the row as prompt `number` of its batch."""
        token_ids = np.concatenate(self.ids).astype(np.int32)
        lengths = [len(ids) for ids in self.ids]
        document = np.repeat([document for document, _ in self.places], lengths).astype(np.int32)
        spans = zip(self.places, lengths, strict=True)
        positions = np.concatenate([np.arange(at, at + length, dtype=np.int32) for (_, at), length in spans])
        special, wanted = np.ones(self.length, bool), np.zeros(self.length, bool)
        roles = np.full(self.length, "", object)
        start = 0
        for (index, position), length in zip(self.places, lengths, strict=True):
            of = documents[index]
            own = slice(start, start + max(0, min(length, len(of.token_ids) - position) if position >= 0 else 0))
            there = slice(position, position + own.stop - own.start)
            special[own], wanted[own] = of.special_marks[there], np.isin(np.arange(there.start, there.stop), of.places)
            if of.roles is not None:
                roles[own] = of.roles[there]
            between = slice(own.stop, start + length)
            wanted[between] = extract.positions is Positions.all and not extract.roles
            start += length
        if Exclude.special in extract.exclude:
            wanted &= ~special
        first, last = document[0], document[-1] + 1
        origin = Origin(
            number, positions, samples=tuple(of.sample for of in documents[first:last]), sample_of=document - first
        )
        kept = None if wanted.all() else np.flatnonzero(wanted).astype(np.int32)
        doubled = any(documents[index].doubled_bos for index, position in self.places if position == 0)
        sample = documents[first].sample
        return Prompt(sample, token_ids, 0, doubled, special, kept, origin, roles if extract.wants_roles else None)


def cut_rows(documents: Sequence[Prompt], rules: ConcatRules) -> Iterator[Row]:
    """Yields the full rows."""
    S, row, before_each = rules.extract.seq_len, Row(), rules.kind is Separator.bos
    for number in range(len(documents)):
        ids, at = stream(documents, number, rules), 0
        while at < len(ids):
            token = rules.begin if not row.length else rules.separator if before_each and not at else None
            if token is not None and not (before_each and ids[at] == token):
                row.add(np.array([token]), number, BETWEEN)
            take = min(S - row.length, len(ids) - at)
            if take:
                row.add(ids[at : at + take], number, at)
            at += take
            if row.length == S:
                yield row
                row = Row()


def stream(documents: Sequence[Prompt], number: int, rules: ConcatRules) -> Int32[np.ndarray, " length"]:
    """Returns the tokens of a document, and of any but the last the separator that ends it."""
    ids = documents[number].token_ids
    if rules.kind is not Separator.eos or rules.separator is None or number == len(documents) - 1:
        return ids
    return np.append(ids, np.int32(rules.separator))
