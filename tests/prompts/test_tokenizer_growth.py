"""A tokenizer of a stranger makes no short text long: its steps are bounded before the library runs them."""

import base64
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from pod_job.errors import JobError, is_panic
from pod_job.prompts.tokenizer import load_tokenizer
from pod_job.prompts.tokenizer_growth import growth, steps_of
from pod_job.terminal import no_backtraces
from tools.tiny_model import write_tiny_model

WORDS = {"&": "and", "%": "percent", "$": "dollars", "£": "pounds", "0": "zero", "1": "one", "2": "two", "3": "three"}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "model")


def literal(pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": pattern}, "content": content}


def regex(pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}


def normalizer(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"normalizer": {"type": "Sequence", "normalizers": list(steps)}}


def template(tokens: int, pieces: int) -> dict[str, Any]:
    sequences = [{"Sequence": {"id": name, "type_id": 0}} for name in "AB"]
    single = [{"SpecialToken": {"id": "<s>", "type_id": 0}}] * pieces + sequences[:1]
    special = {"<s>": {"id": "<s>", "ids": [1] * tokens, "tokens": ["<s>"] * tokens}}
    return {"type": "TemplateProcessing", "single": single, "pair": sequences, "special_tokens": special}


def charsmap(text: bytes) -> dict[str, Any]:
    data = (4).to_bytes(4, "little") + bytes(4) + text + b"\0"
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(data).decode()}


BOMBS = {
    "doubling": normalizer(*[literal("a", "aa")] * 40),
    "doubling without types": {"normalizer": {"normalizers": [{"pattern": {"String": "a"}, "content": "aa"}] * 40}},
    "by another text": normalizer(*[literal("a", "bb"), literal("b", "aa")] * 20),
    "by another case": normalizer(*[literal("a", "AA"), {"type": "Lowercase"}] * 40),
    "where nothing is": normalizer(*[regex("(?=a)", "a")] * 40),
    "long": normalizer(literal("a", "b" * 10_000)),
    "before each piece": normalizer({"type": "Prepend", "prepend": "x" * 10_000}),
    "bytes as characters": normalizer(*[{"type": "ByteLevel"}] * 40),
    "characters of a map": normalizer(charsmap(b"x" * 10_000)),
    "pieces": {
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}] * 40,
        }
    },
    "special tokens": {"post_processor": template(1000, 1000)},
    "templates": {"post_processor": {"type": "Sequence", "processors": [template(1, 9)] * 40}},
    "decoding": {"decoder": {"type": "Sequence", "decoders": [regex(".", "aa")] * 40}},
    "decoding between characters": {
        "decoder": {"type": "Sequence", "decoders": [{"type": "BPEDecoder", "suffix": ""}] * 40}
    },
}
SOUND = {
    "words for signs": normalizer(*[literal(sign, f" {word} ") for sign, word in WORDS.items()]),
    "spaces of sentencepiece": normalizer({"type": "Prepend", "prepend": "▁"}, literal(" ", "▁")),
    "a map and spaces": normalizer({"type": "Strip", "strip_left": False, "strip_right": True}, regex(" {2,}", "▁")),
    "begin and end": {"post_processor": template(1, 2)},
    "cases": normalizer({"type": "NFKD"}, {"type": "StripAccents"}, {"type": "Lowercase"}, regex(r"\s+", " ")),
}


def with_parts(model: Path, parts: dict[str, Any]) -> Path:
    """Writes these parts into tokenizer.json, and an added token that is normalized while the file is loaded."""
    file = json.loads((model / "tokenizer.json").read_text())
    added = dict.fromkeys(("single_word", "lstrip", "rstrip", "special"), False)
    tokens = [*file["added_tokens"], {"id": 10**6, "content": "aaaa", "normalized": True, **added}]
    (model / "tokenizer.json").write_text(json.dumps(file | parts | {"added_tokens": tokens}))
    return model


@pytest.mark.parametrize("kind", BOMBS)
def test_steps_that_make_a_short_text_long_are_refused_in_one_line_before_they_run(model: Path, kind: str) -> None:
    with pytest.raises(
        JobError, match=r"may make a .* times as long, more than 4,096; use the tokenizer\.json"
    ) as caught:
        load_tokenizer(with_parts(model, BOMBS[kind]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", SOUND)
def test_steps_that_tokenizers_have_are_taken(model: Path, kind: str) -> None:
    assert load_tokenizer(with_parts(model, SOUND[kind]))("a word")["input_ids"]


def test_no_text_grows_by_more_than_the_bound() -> None:
    rng = random.Random(0)
    for _ in range(300):
        steps = [random_step(rng) for _ in range(rng.randrange(1, 7))]
        parts = {"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}, **normalizer(*steps)}
        normalize = Tokenizer.from_str(json.dumps(parts)).normalizer
        most = growth(steps_of(normalize))
        for _ in range(10 if most < 10_000 else 0):
            text = "".join(rng.choices("abcAB é", k=rng.randrange(1, 12)))
            assert len(normalized(normalize, text).encode()) <= most * len(text.encode()), (steps, text)


def normalized(normalizer: Any, text: str) -> str:
    """Returns the text as the normalizer makes it; "" where the library panics, as it does on some empty texts."""
    try:
        with no_backtraces():
            return normalizer.normalize_str(text)
    except BaseException as error:
        if not is_panic(error):
            raise
        return ""


def random_step(rng: random.Random) -> dict[str, Any]:
    def word(least: int) -> str:
        return "".join(rng.choices("abcé", k=rng.randrange(least, 4)))

    steps = [literal(word(1), word(0)), literal(word(1), word(0)), regex(rng.choice(("(?=a)", "b*", "[ab]")), word(0))]
    fixed = [{"type": kind} for kind in ("Lowercase", "NFC", "StripAccents", "ByteLevel")]
    return rng.choice([*steps * 2, {"type": "Prepend", "prepend": word(1)}, *fixed])


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model", "vocab.json"])
def test_a_file_of_holes_in_place_of_a_tokenizer_is_refused_by_its_size(model: Path, name: str) -> None:
    (model / name).touch()
    os.truncate(model / name, 1 << 40)
    with pytest.raises(JobError, match=rf"{name} has 1,099,511,627,776 bytes, .*; copy its files again"):
        load_tokenizer(model)
