"""Prompts to token ids: texts, chats through the model's template, ids as they are; and a model without a template."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

from pod_job.checkpoints.locate import small_files
from pod_job.config.schema import TooLong
from pod_job.config.tasks import OnBroken
from pod_job.errors import JobError
from pod_job.prompts.prompt import PromptRules
from pod_job.prompts.sources.sample import Message, Sample
from pod_job.prompts.text_ends import check_ends
from pod_job.prompts.tokenizer import (
    VOCABULARIES,
    TokenizerFolder,
    check_template,
    load_tokenizer,
    plain_backend,
    tokenizer_fingerprint,
)
from pod_job.prompts.tokens import encode_texts, tokenize, usable_prompts
from pod_job.terminal import CONTROLS
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


PANICS: dict[str, dict[str, Any]] = {
    "charsmap": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
    "merge": {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": [["a", "b"]]}},
}


@pytest.mark.parametrize("part", PANICS)
def test_a_panic_of_the_tokenizer_is_one_line(model: Path, part: str, capfd: pytest.CaptureFixture[str]) -> None:
    tokens: Any = json.loads((model / "tokenizer.json").read_text())
    (model / "tokenizer.json").write_text(json.dumps(tokens | PANICS[part]))
    with pytest.raises(JobError, match=r"its tokenizer cannot be loaded \(.*\); copy its files again") as caught:
        load_tokenizer(model)
    assert "\n" not in str(caught.value)
    assert "panicked" not in capfd.readouterr().err


def test_names_in_a_tokenizer_s_files_reach_no_terminal_as_they_are(
    model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = model / "tokenizer_config.json"
    config = json.loads(file.read_text())
    token = {"content": "<x>", "\x1b]52;c;eA==\x07": True}  # of which the library says that it does not know it
    file.write_text(json.dumps(config | {"added_tokens_decoder": {"5": token}, "\x1b[2J": 1}))
    load_tokenizer(model)
    shown = capfd.readouterr()
    assert shown.out == ""
    assert not CONTROLS.search(shown.err)


def test_what_is_no_file_is_no_part_of_a_tokenizer(model: Path) -> None:
    before = tokenizer_fingerprint(model)
    (model / "tokenizer").mkdir()
    (model / "tokenizer_link.json").symlink_to("/dev/zero")
    os.mkfifo(model / "tokenizer_pipe")
    assert tokenizer_fingerprint(model) == before


def test_a_tokenizer_that_knows_no_word_is_refused(model: Path) -> None:
    tokens: Any = json.loads((model / "tokenizer.json").read_text())
    unknown = {"type": "WordLevel", "vocab": {"<unk>": 0}, "unk_token": "<unk>"}
    (model / "tokenizer.json").write_text(json.dumps(tokens | {"model": unknown, "added_tokens": []}))
    with pytest.raises(JobError, match="gives all text one token"):
        load_tokenizer(model)


def test_every_vocabulary_is_among_the_files_that_come_with_a_model() -> None:
    assert small_files(list(VOCABULARIES)) == list(VOCABULARIES)


@pytest.mark.parametrize(("too_long", "kept"), [(3, [5, 6, 7]), (7, [1, 2, 3, 4, 5, 6, 7])])
def test_a_cut_prompt_keeps_its_last_tokens(model: Path, too_long: int, kept: list[int]) -> None:
    sample = Sample("a", 0, np.arange(1, 8))
    (prompt,) = tokenize(load_tokenizer(model), [sample], too_long, TooLong.cut)
    assert prompt.token_ids.tolist() == kept
    assert prompt.dropped == 7 - too_long


BEGIN, END = "<|im_start|>", "<|endoftext|>"


def with_ends(model: Path, single: str = f"{BEGIN} $A", **declared: Any) -> Path:
    """Makes the tokenizer add what `single` says, and tokenizer_config.json declare what `declared` says."""
    backend = tokenizers.Tokenizer.from_file(str(model / "tokenizer.json"))
    added = [(token, backend.token_to_id(token)) for token in (BEGIN, END)]
    backend.post_processor = tokenizers.processors.TemplateProcessing(single=single, special_tokens=added)
    backend.save(str(model / "tokenizer.json"))
    file = model / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"bos_token": BEGIN, "eos_token": END} | declared))
    return model


@pytest.mark.parametrize("kind", ["LlamaTokenizerFast", "PreTrainedTokenizerFast", "Qwen2TokenizerFast"])
@pytest.mark.parametrize(
    ("single", "declared", "says"),
    [
        ("$A", {"add_bos_token": True}, "add_bos_token=true, and the post_processor of tokenizer.json adds none"),
        (f"{BEGIN} $A", {"add_bos_token": False}, "add_bos_token=false, and the post_processor of .* adds one"),
        ("$A", {"add_bos_token": True, "bos_token": None}, "has add_bos_token=true and no bos_token"),
        ("$A", {"add_eos_token": True}, "add_eos_token=true, and the post_processor of tokenizer.json adds none"),
        (f"$A {END}", {"add_eos_token": False}, "add_eos_token=false, and the post_processor of .* adds one"),
        (f"{BEGIN} $A", {"add_bos_token": True, "add_eos_token": False}, None),
        ("$A", {"add_bos_token": False, "bos_token": None}, None),
        (f"{BEGIN} $A {END}", {}, None),
    ],
)
def test_a_begin_token_that_is_declared_and_not_added_is_refused(
    model: Path, kind: str, single: str, declared: dict[str, Any], says: str | None
) -> None:
    folder = with_ends(model, single, tokenizer_class=kind, **declared)
    with nullcontext() if says is None else pytest.raises(JobError, match=says):
        check_ends(folder, load_tokenizer(folder))


@pytest.mark.parametrize(("single", "around"), [(f"{BEGIN} $A", (1, 0)), (f"{BEGIN} $A {END}", (1, 1)), ("$A", (0, 0))])
def test_a_text_that_has_the_begin_token_itself_keeps_it_once(
    model: Path, single: str, around: tuple[int, int]
) -> None:
    tokenizer: Any = load_tokenizer(with_ends(model, single))
    before, after = BEGIN * around[0], END * around[1]
    texts = ["hello", f"{before}hello", f"{before}hello{after}", f"{before}{before}hello{after}"]
    samples = [Sample(str(i), 0, text) for i, text in enumerate(texts)]
    prompts = tokenize(tokenizer, samples, 1000, TooLong.refuse)
    assert {tokenizer.decode(prompt.token_ids) for prompt in prompts} == {f"{before}hello{after}"}
    assert [prompt.doubled_bos for prompt in prompts] == [False, *[around != (0, 0)] * 3]
    within = Sample("within", 0, f"hello{BEGIN}{BEGIN}")
    (prompt,) = tokenize(tokenizer, [within], 1000, TooLong.refuse)
    assert tokenizer.decode(prompt.token_ids) == f"{before}hello{BEGIN}{BEGIN}{after}"


def test_a_chat_whose_template_writes_the_begin_token_has_one(model: Path) -> None:
    tokenizer: Any = load_tokenizer(with_ends(model))
    tokenizer.chat_template = "{{ bos_token }}{% for message in messages %}{{ message.content }}{% endfor %}"
    assert decoded(tokenizer, Sample("a", 0, ASK)) == f"{BEGIN}hello"


def test_prompts_that_cannot_be_used_are_left_out_with_the_reason(model: Path) -> None:
    tokenizer: Any = load_tokenizer(with_ends(model))
    tokenizer.add_tokens(["<tool>"])
    tokenizer.chat_template = "{% if messages|length > 1 %}{{ raise_exception('one turn') }}{% endif %}hello"
    prompts: dict[str, Any] = {
        "good": "hello",
        "token_out_of_vocabulary": "call <tool>",
        "too_long": "a" * 100,
        "refused_by_template": ANSWER,
        "blank": BEGIN,
        "refused_by_tokenizer": "half \ud83d",
        "chat": ASK,
        "ids": np.array([1, 2]),
    }
    samples = [Sample(name, 0, prompt) for name, prompt in prompts.items()]
    rules = PromptRules(50, TooLong.refuse, len(tokenizer) - 1, OnBroken.skip)
    result = usable_prompts(tokenizer, samples, rules)
    assert [prompt.sample.task_id for prompt in result.prompts] == ["good", "chat", "ids"]
    assert [broken.reason.value for broken in result.skipped] == [
        name for name in prompts if name not in ("good", "chat", "ids")
    ]
    for broken, sample in zip(result.skipped, samples[1:6], strict=True):
        assert str(sample) in str(broken)
        with pytest.raises(JobError, match=rf"^task {sample.task_id}, sample 0.*tasks\.on_broken=skip$"):
            usable_prompts(tokenizer, [sample], replace(rules, on_broken=OnBroken.refuse))


TEXTS = ["", " two  spaces", "a" * 300, "tabs\tand\nlines", "<|im_end|>", "\U0001f600 \u00fc \u6587", "plain"]


def test_texts_have_the_tokens_of_a_call_of_the_tokenizer_from_any_thread(model: Path) -> None:
    """Whatever truncation and padding its file asks for, and though its own class may be a Python one."""
    file = model / "tokenizer.json"
    cutting = {"truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}}
    cutting |= {
        "padding": {
            "strategy": {"Fixed": 8},
            **{"direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "!"},
        }
    }
    file.write_text(json.dumps(json.loads(file.read_text()) | cutting))
    tokenizer = load_tokenizer(model)
    assert plain_backend(tokenizer) is not None

    class Own(type(tokenizer)):
        def _encode_plus(self, text, **options):
            return super()._encode_plus([word.lower() for word in text], **options)

    own = Own.from_pretrained(model)
    assert plain_backend(own) is None
    assert encode_texts(own, ["ABC"], True) == encode_texts(tokenizer, ["abc"], True)
    for special in (True, False):
        called = tokenizer(TEXTS, add_special_tokens=special)["input_ids"]
        with ThreadPoolExecutor(8) as threads:
            found = list(threads.map(lambda _, special=special: encode_texts(tokenizer, TEXTS, special), range(32)))
        assert found == [called] * 32
