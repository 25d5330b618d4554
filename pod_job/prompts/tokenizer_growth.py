"""How much longer a tokenizer may make a text: one of a few bytes that a stranger wrote could fill all memory.

`tokenizer.json` is a program of steps, each of which may replace a character by any text. The library runs them even
while it loads the file, on the tokens that were added. So the steps are looked at first, in a tokenizer that has no
tokens; bounds are of UTF-8 bytes, and generous.
"""

import base64
import json
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


def steps_of(part: Any) -> list[dict[str, Any]]:
    """Returns the steps of a part of a tokenizer, in their order."""
    return [] if part is None else list(flat(json.loads(part.__getstate__())))


def flat(step: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if step["type"] != "Sequence":
        yield step
        return
    [inner] = (value for value in step.values() if isinstance(value, list))  # by the part, under another name
    for each in inner:
        yield from flat(each)


def growth(steps: Iterable[dict[str, Any]]) -> int:
    """Returns how many times as long the steps may make something, one after the other.

    Replacements of texts that follow each other multiply only where a later one finds what an earlier one wrote.
    """
    total, group, written = 1, 1, set[str]()
    for step in steps:
        factor, pattern = growth_of(step), step.get("pattern", {})
        found = pattern.get("String") if isinstance(pattern, dict) and "content" in step else None
        if not found:
            total, group, written = total * group * factor, 1, set()
            continue
        group = max(group, factor) if written.isdisjoint(found) else group * factor
        written |= set(step["content"])
    return total * group


def growth_of(step: dict[str, Any]) -> int:
    """Returns how many times as long one step may make something."""
    kind = step["type"]
    if kind == "Replace":
        found, content = step["pattern"].get("String"), len(step["content"].encode())
        # A regular expression may match where nothing is: before each character, and behind the last.
        return max(1, -(-content // len(found.encode()))) if found else 1 + 2 * content
    if kind == "Prepend":
        return 1 + len(step["prepend"].encode())
    if kind == "Precompiled":
        return longest_replacement(base64.b64decode(step["precompiled_charsmap"]))
    if kind == "TemplateProcessing":
        tokens = step["special_tokens"]
        pieces = (len(tokens[name]["ids"]) for name in special_names(step["single"]))
        return max(1, sum(pieces) + sum("Sequence" in piece for piece in step["single"]))
    if kind in ("BPEDecoder", "CTC"):  # which replace a text, and find one of no characters everywhere
        return 1 if step.get("suffix") or step.get("word_delimiter_token") else 2
    return FIXED.get(kind, 1)


def special_names(template: list[dict[str, Any]]) -> list[str]:
    return [piece["SpecialToken"]["id"] for piece in template if "SpecialToken" in piece]


def longest_replacement(charsmap: bytes) -> int:
    """Returns the size of the longest text in a map of sentencepiece: a trie behind its size, then texts and zeros."""
    texts = charsmap[4 + int.from_bytes(charsmap[:4], "little") :]
    return max(1, *map(len, texts.split(b"\0")))
