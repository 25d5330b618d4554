"""How much longer a tokenizer may make a text: one of a few bytes that a stranger wrote could fill all memory.

`tokenizer.json` is a program of steps, each of which may replace a character by any text. The library runs them even
while it loads the file, on the tokens that were added. So the steps are looked at first, in a tokenizer that has no
tokens; bounds are of UTF-8 bytes, and generous.
"""

import base64
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from pod_job.errors import JobError

MOST_GROWTH = 4096
"""Bytes that a byte of text may become; by these bounds it is 1,386 of XLM-R, whose map has texts of 33 bytes."""
NO_TOKENS = b'{"type": "BPE", "vocab": {}, "merges": []}'
NULL = msgspec.Raw(b"null")
FIXED = {"ByteLevel": 4, "Metaspace": 6, "BertProcessing": 3, "RobertaProcessing": 3}
"""Steps whose growth nobody can choose; those of Unicode, such as NFKC, do not multiply each other."""


class TokenizerSteps(msgspec.Struct):
    """The parts of tokenizer.json that work on texts and on token ids, as they are."""

    normalizer: msgspec.Raw = NULL
    pre_tokenizer: msgspec.Raw = NULL
    post_processor: msgspec.Raw = NULL
    decoder: msgspec.Raw = NULL


class Pattern(msgspec.Struct, frozen=True):
    """A text, or "" for a regular expression."""

    text: str = msgspec.field(default="", name="String")


class SpecialToken(msgspec.Struct):
    """A special token that a template writes; `ids`: the tokens that it stands for."""

    id: str
    ids: list[int] = []


class Piece(msgspec.Struct):
    """A piece of a template: a special token, or else the text."""

    special: SpecialToken | None = msgspec.field(default=None, name="SpecialToken")


class Step(msgspec.Struct):
    """One step of a tokenizer, or a sequence of steps, with those of its settings that tell how much it may write."""

    type: str
    pattern: Pattern = Pattern()
    content: str = ""
    prepend: str = ""
    precompiled_charsmap: str = ""
    suffix: str = ""
    word_delimiter_token: str = ""
    single: list[Piece] = []
    special_tokens: dict[str, SpecialToken] = {}
    normalizers: list["Step"] = []
    pretokenizers: list["Step"] = []
    processors: list["Step"] = []
    decoders: list["Step"] = []


def check_file(path: Path, where: str) -> None:
    """Raises JobError for a tokenizer.json whose steps may make a text too long, and other errors for a damaged one."""
    from tokenizers import Tokenizer  # imports for half a second

    steps = msgspec.json.decode(path.read_bytes(), type=TokenizerSteps)
    parts = [b'"%s": %s' % (name.encode(), bytes(getattr(steps, name))) for name in steps.__struct_fields__]
    content = b'{"version": "1.0", "model": %s, %s}' % (NO_TOKENS, b", ".join(parts))
    check_growth(Tokenizer.from_buffer(content), where)


def check_growth(tokenizer: Any, where: str) -> None:
    """Raises JobError for a tokenizer of the package tokenizers that may make a text too long."""
    texts = [*steps_of(tokenizer.normalizer), *steps_of(tokenizer.pre_tokenizer)]
    for what, steps in (
        ("text", texts),
        ("list of tokens", steps_of(tokenizer.post_processor)),
        ("decoded text", steps_of(tokenizer.decoder)),
    ):
        if (most := growth(steps)) > MOST_GROWTH:
            times = f"{most:,}" if most < 10**12 else "a trillion"
            raise JobError(
                f"{where}: its tokenizer may make a {what} {times} times as long, more than {MOST_GROWTH:,}; use the "
                "tokenizer.json of whoever made the model"
            )


def steps_of(part: Any) -> list[Step]:
    """Returns the steps of a part of a tokenizer, in their order."""
    return [] if part is None else list(flat(msgspec.json.decode(part.__getstate__(), type=Step)))


def flat(step: Step) -> Iterator[Step]:
    if step.type != "Sequence":
        yield step
    for inner in (*step.normalizers, *step.pretokenizers, *step.processors, *step.decoders):
        yield from flat(inner)


def growth(steps: Iterable[Step]) -> int:
    """Returns how many times as long the steps may make something, one after the other.

    Replacements of texts that follow each other multiply only where a later one finds what an earlier one wrote.
    """
    total, group, written = 1, 1, set[str]()
    for step in steps:
        factor, found = growth_of(step), step.pattern.text if step.type == "Replace" else ""
        if not found:
            total, group, written = total * group * factor, 1, set()
            continue
        group = max(group, factor) if written.isdisjoint(found) else group * factor
        written |= set(step.content)
    return total * group


def growth_of(step: Step) -> int:
    """Returns how many times as long one step may make something."""
    if step.type == "Replace":
        found, content = len(step.pattern.text.encode()), len(step.content.encode())
        # A regular expression may match where nothing is: before each character, and behind the last.
        return max(1, -(-content // found)) if found else 1 + 2 * content
    if step.type == "Prepend":
        return 1 + len(step.prepend.encode())
    if step.type == "Precompiled":
        return longest_replacement(base64.b64decode(step.precompiled_charsmap))
    if step.type == "TemplateProcessing":
        tokens = [len(step.special_tokens[piece.special.id].ids) for piece in step.single if piece.special]
        return max(1, sum(tokens) + len(step.single) - len(tokens))
    if step.type in ("BPEDecoder", "CTC"):  # which replace a text, and find one of no characters everywhere
        return 1 if step.suffix or step.word_delimiter_token else 2
    return FIXED.get(step.type, 1)


def longest_replacement(charsmap: bytes) -> int:
    """Returns the size of the longest text in a map of sentencepiece: a trie behind its size, then texts and zeros."""
    texts = charsmap[4 + int.from_bytes(charsmap[:4], "little") :]
    return max(1, *map(len, texts.split(b"\0")))
