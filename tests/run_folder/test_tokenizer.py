"""The run's own tokenizer gives the text that the model's gives; one that a stranger spoilt is refused by its name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pod_job.errors import JobError
from pod_job.prompts.tokenizer import load_tokenizer
from pod_job.run_folder import tokenizer as tokenizer_file
from pod_job.run_folder.layout import TOKENIZER
from pod_job.run_folder.tokenizer import read_decoder, store_tokenizer
from pod_job.storage.open import open_folder
from tools.tiny_model import write_tiny_model

REAL = Path("runs/models/SmolLM2-135M-Instruct")


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The file of the tiny model's tokenizer."""
    place = tmp_path_factory.mktemp("tokenizer")
    assert store_tokenizer(open_folder(place / "run"), load_tokenizer(write_tiny_model(place / "model")))
    return json.loads((place / "run" / TOKENIZER).read_text())


@pytest.mark.parametrize("model", ["tiny", "real"])
def test_it_decodes_as_the_models(model: str, tmp_path: Path, require: Callable[[bool, str], None]) -> None:
    require(model == "tiny" or REAL.is_dir(), f"{REAL}: make {REAL}/config.json")
    tokenizer: Any = load_tokenizer(write_tiny_model(tmp_path / "model") if model == "tiny" else REAL)
    assert store_tokenizer(open_folder(tmp_path / "run"), tokenizer)
    decode = read_decoder(open_folder(tmp_path / "run"))
    for text in ("Input: 1 2\n3", "  two  spaces ", "naïve 🤗 日本語", "<|im_start|>user\nhi<|im_end|>"):
        ids = tokenizer(text, add_special_tokens=True)["input_ids"]
        for start in range(3):
            assert decode(ids[start:]) == tokenizer.decode(ids[start:], clean_up_tokenization_spaces=False)
    assert decode([-1]) == decode([]) == ""


def test_a_tokenizer_without_such_a_file_is_not_stored(tmp_path: Path) -> None:
    assert not store_tokenizer(open_folder(tmp_path), object())
    with pytest.raises(JobError, match=r"tokenizer\.json is missing, as in a run of an earlier version"):
        read_decoder(open_folder(tmp_path))


def replaced(pattern: dict[str, str], text: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": text}


SPOILT: dict[str, Callable[[dict[str, Any]], object]] = {
    "text that grows": lambda file: file.update(decoder=replaced({"String": "a"}, "aaaa")),
    "text from nothing": lambda file: file.update(decoder=replaced({"String": ""}, "a")),
    "a pattern without end": lambda file: file.update(decoder=replaced({"Regex": "(a+)+$"}, "")),
    "deep inside": lambda file: file.update(
        decoder={"type": "Sequence", "decoders": [{"type": "Sequence", "decoders": [replaced({"String": "a"}, "bb")]}]}
    ),
    "a text doubled again and again": lambda file: file.update(
        decoder={"type": "Sequence", "decoders": [{"type": "BPEDecoder", "suffix": ""}] * 30}
    ),
    "a text doubled": lambda file: file.update(
        decoder={"type": "CTC", "pad_token": "x", "word_delimiter_token": "", "cleanup": True}
    ),
    "thousands of steps": lambda file: file.update(
        decoder={"type": "Sequence", "decoders": [{"type": "ByteFallback"}] * 100_000}
    ),
    "an unknown step": lambda file: file.update(decoder={"type": "Run", "content": "ls"}),
    "a step without a type": lambda file: file.update(decoder={"decoders": []}),
    "a long token": lambda file: file["model"]["vocab"].update({"a" * 100_000: 7}),
    "no vocabulary": lambda file: file["model"].update(vocab=None),
    "a token without end": lambda file: file["model"]["vocab"].update(a=2**70),
    "another model": lambda file: file.update(model={"type": "Pickle", "path": "/etc/passwd"}),
    "added tokens that are none": lambda file: file.update(added_tokens=[3]),
    "no model": lambda file: file.pop("model"),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_a_spoilt_one_is_refused(kind: str, content: dict[str, Any], tmp_path: Path) -> None:
    changed = json.loads(json.dumps(content))
    SPOILT[kind](changed)
    open_folder(tmp_path).create(TOKENIZER, [json.dumps(changed).encode()])
    with pytest.raises(JobError, match=r"tokenizer/tokenizer\.json") as refused:
        read_decoder(open_folder(tmp_path))
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 600


@pytest.mark.parametrize("data", [b"", b"\xff", b"[]", b"[" * 100_000, b'{"model": ' + b"[" * 100_000])
def test_what_is_no_tokenizer_is_refused(data: bytes, tmp_path: Path) -> None:
    open_folder(tmp_path).create(TOKENIZER, [data])
    with pytest.raises(JobError, match=r"tokenizer/tokenizer\.json"):
        read_decoder(open_folder(tmp_path))


def test_no_more_is_read_than_a_tokenizer_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_file, "MOST_BYTES", 1 << 20)
    open_folder(tmp_path).create(TOKENIZER, [b" " * (2 << 20)])
    with pytest.raises(JobError, match="is larger than 1 MiB"):
        read_decoder(open_folder(tmp_path))


def test_what_only_tokenizing_needs_is_not_read(content: dict[str, Any], tmp_path: Path) -> None:
    """A stranger's normalizer and patterns are never given to the library."""
    changed = content | {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}, "pre_tokenizer": 7}
    open_folder(tmp_path).create(TOKENIZER, [json.dumps(changed).encode()])
    assert read_decoder(open_folder(tmp_path))([]) == ""
