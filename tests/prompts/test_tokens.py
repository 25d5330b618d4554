"""Prompts to token ids: texts, chats through the model's template, ids as they are; and a model without a template."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pod_job.checkpoints.locate import small_files
from pod_job.config.schema import TooLong
from pod_job.errors import JobError
from pod_job.prompts.sources.sample import Message, Sample
from pod_job.prompts.tokens import (
    VOCABULARIES,
    TokenizerFolder,
    check_template,
    load_tokenizer,
    tokenize,
    tokenizer_fingerprint,
)
from tools.tiny_model import write_tiny_model

ASK: list[Message] = [{"role": "user", "content": "hello"}]
ANSWER: list[Message] = [*ASK, {"role": "assistant", "content": "yes"}]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "model")


def decoded(tokenizer: Any, sample: Sample) -> str:
    (prompt,) = tokenize(tokenizer, [sample], 1000, TooLong.refuse)
    return tokenizer.decode(prompt.token_ids)


def test_a_chat_is_rendered_by_the_models_template(model: Path) -> None:
    tokenizer = load_tokenizer(model)
    opened = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert decoded(tokenizer, Sample("a", 0, ASK)) == opened
    assert decoded(tokenizer, Sample("a", 0, ANSWER)) == f"{opened}yes<|im_end|>\n"


def test_kinds_of_prompts_are_tokenised_together_in_their_order(model: Path) -> None:
    tokenizer = load_tokenizer(model)
    ids = np.array([7, 300, 5])
    samples = [Sample(str(i), 0, prompt) for i, prompt in enumerate([ids, "text", ASK, ids, "more"])]
    together = [prompt.token_ids.tolist() for prompt in tokenize(tokenizer, samples, 1000, TooLong.refuse)]
    alone = [tokenize(tokenizer, [sample], 1000, TooLong.refuse)[0].token_ids.tolist() for sample in samples]
    assert together == alone
    assert together[0] == [7, 300, 5]


def without_template(model: Path) -> Path:
    file = model / "tokenizer_config.json"
    config = json.loads(file.read_text())
    del config["chat_template"]
    file.write_text(json.dumps(config))
    return model


def test_a_model_without_a_template_is_refused_for_chats(model: Path) -> None:
    check_template(TokenizerFolder(model))
    with pytest.raises(JobError, match="has no chat template, which chat prompts need"):
        check_template(TokenizerFolder(without_template(model)))


def test_a_chat_that_the_template_refuses_is_named(model: Path) -> None:
    tokenizer = load_tokenizer(model)
    tokenizer.chat_template = "{{ raise_exception('no system role') }}"
    with pytest.raises(JobError, match=r"task a, sample 0: the model's chat template refuses it \(no system role\)"):
        decoded(tokenizer, Sample("a", 0, ASK))


def test_the_fingerprint_follows_a_template_in_a_file_of_its_own(model: Path) -> None:
    before = tokenizer_fingerprint(model)
    (model / "chat_template.jinja").write_text("{{ messages }}")
    assert tokenizer_fingerprint(model) != before


def test_a_token_without_an_embedding_is_refused_by_task_and_id(model: Path) -> None:
    tokenizer: Any = load_tokenizer(model)
    vocab = len(tokenizer)
    tokenizer.add_tokens(["<tool>"])
    samples = [Sample("fits", 0, "plain text"), Sample("tools", 3, "call <tool> now")]
    assert len(tokenize(tokenizer, samples[:1], 1000, TooLong.refuse, vocab)) == 1
    with pytest.raises(
        JobError, match=rf"task tools, sample 3 has token {vocab}, and the model's embedding has {vocab}"
    ):
        tokenize(tokenizer, samples, 1000, TooLong.refuse, vocab)


@pytest.mark.parametrize("kept", [(), ("tokenizer_config.json", "special_tokens_map.json")])
def test_a_folder_without_a_vocabulary_is_refused(model: Path, kept: tuple[str, ...]) -> None:
    for path in model.glob("*token*"):
        if path.name not in kept:
            path.unlink()
    with pytest.raises(JobError, match=r"has no tokenizer file \(none of tokenizer\.json"):
        load_tokenizer(model)


@pytest.mark.parametrize(
    "content",
    [b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 7\n", b"", b"[]", b'{"version": "1.0", "model"'],
)
def test_a_damaged_tokenizer_is_refused_in_one_line(model: Path, content: bytes) -> None:
    (model / "tokenizer.json").write_bytes(content)
    with pytest.raises(
        JobError, match=r"^model\.path=.*: its tokenizer cannot be loaded \(.*\); copy its files"
    ) as refused:
        load_tokenizer(model)
    assert "\n" not in str(refused.value)


def test_a_tokenizer_that_knows_no_word_is_refused(model: Path) -> None:
    tokens: Any = json.loads((model / "tokenizer.json").read_text())
    unknown = {"type": "WordLevel", "vocab": {"<unk>": 0}, "unk_token": "<unk>"}
    (model / "tokenizer.json").write_text(json.dumps(tokens | {"model": unknown, "added_tokens": []}))
    with pytest.raises(JobError, match="gives all text one token"):
        load_tokenizer(model)


def test_every_vocabulary_is_among_the_files_that_come_with_a_model() -> None:
    assert small_files(list(VOCABULARIES)) == list(VOCABULARIES)
