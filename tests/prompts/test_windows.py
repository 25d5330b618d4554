"""Documents longer than a row: their beginning, their end, or windows that have each token's row once; begin tokens."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from begin_token import BEGIN, END, add_begin_token

from pod_job.config.extract import Exclude, ExtractConfig, Positions, TooLong
from pod_job.errors import JobError
from pod_job.prompts.prompt import Prompt, PromptRules
from pod_job.prompts.sources.sample import Sample
from pod_job.prompts.tokenizer import load_tokenizer
from pod_job.prompts.tokens import usable_prompts
from tools.tiny_model import write_tiny_model


@pytest.fixture(scope="module", params=[True, False], ids=["with begin token", "without"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A byte tokenizer, which may put a begin token before every text."""
    model = write_tiny_model(tmp_path_factory.mktemp("model"))
    if request.param:
        add_begin_token(model)
    return load_tokenizer(model)


def cut(tokenizer: Any, text: Any, too_long: TooLong, seq_len: int = 8, **extract: Any) -> list[Prompt]:
    config = ExtractConfig(**{"positions": Positions.all, "seq_len": seq_len, "too_long": too_long} | extract)
    return usable_prompts(tokenizer, [Sample("a", 0, text)], PromptRules(seq_len, too_long, extract=config)).prompts


def has_begin(tokenizer: Any) -> bool:
    return tokenizer("x")["input_ids"][0] == BEGIN


@pytest.mark.parametrize("length", [1, 6, 7, 8, 9, 15, 16, 40])
@pytest.mark.parametrize("overlap", [0, 1, 3])
def test_windows_begin_as_the_document_and_have_every_token_once(tokenizer: Any, length: int, overlap: int) -> None:
    text = "".join(chr(97 + i % 26) for i in range(length))
    document, begin = tokenizer(text)["input_ids"], int(has_begin(tokenizer))
    windows = cut(tokenizer, text, TooLong.split, overlap=overlap)
    assert [window.window for window in windows] == list(range(len(windows)))
    stored = []
    for number, window in enumerate(windows):
        ids = window.token_ids.tolist()
        assert len(ids) <= 8
        assert [document[position] for position in window.positions.tolist()] == ids
        assert ids[:begin] == document[:begin]
        stored += window.positions[window.places].tolist()[begin if number else 0 :]
        if number:
            context = window.positions[begin : begin + overlap].tolist()
            assert context == list(
                range(
                    stored[-1] + 1 - len(window.places) + begin - overlap, stored[-1] + 1 - len(window.places) + begin
                )
            )
            assert not set(context) & set(window.positions[window.places].tolist())
    assert stored == list(range(len(document)))
    assert all(len(window.token_ids) == 8 for window in windows[:-1])


@pytest.mark.parametrize("length", [6, 8, 9, 40])
def test_head_and_tail_keep_the_begin_token_and_count_what_they_drop(tokenizer: Any, length: int) -> None:
    text = "".join(chr(97 + i % 26) for i in range(length))
    document, begin = tokenizer(text)["input_ids"], int(has_begin(tokenizer))
    (head,) = cut(tokenizer, text, TooLong.head)
    (tail,) = cut(tokenizer, text, TooLong.tail)
    assert head.token_ids.tolist() == document[:8]
    expected = document if len(document) <= 8 else document[:begin] + document[begin - 8 :]
    assert tail.token_ids.tolist() == expected
    assert [document[position] for position in tail.positions.tolist()] == expected
    assert head.dropped == tail.dropped == max(0, len(document) - 8)


@pytest.mark.parametrize("too_long", [TooLong.head, TooLong.tail, TooLong.split])
def test_token_ids_are_cut_as_texts_are(tokenizer: Any, too_long: TooLong) -> None:
    text = "an unhurried document of some length"
    document = np.array(tokenizer(text)["input_ids"])
    of_text, of_ids = (cut(tokenizer, prompt, too_long) for prompt in (text, document))
    for text_prompt, ids_prompt in zip(of_text, of_ids, strict=True):
        assert text_prompt.token_ids.tolist() == ids_prompt.token_ids.tolist()


def test_tokens_that_end_a_document_are_special_in_its_last_window_only(tmp_path: Path) -> None:
    add_begin_token(write_tiny_model(tmp_path), "<|im_start|> $A <|endoftext|>")
    windows = cut(load_tokenizer(tmp_path), "abcdefgh", TooLong.split, seq_len=6)
    assert [window.token_ids.tolist() for window in windows] == [
        [BEGIN, *range(64, 69)],
        [BEGIN, *range(69, 72), END],
    ]
    assert [np.flatnonzero(window.special_marks).tolist() for window in windows] == [[0], [0, 4]]
    without = cut(load_tokenizer(tmp_path), "abcdefgh", TooLong.split, seq_len=6, exclude=[Exclude.special])
    assert [window.places.tolist() for window in without] == [[1, 2, 3, 4, 5], [1, 2, 3]]


@pytest.mark.parametrize(("seq_len", "overlap"), [(1, 0), (4, 3)])
def test_a_row_without_room_for_a_new_token_is_refused(tmp_path: Path, seq_len: int, overlap: int) -> None:
    add_begin_token(write_tiny_model(tmp_path))
    with pytest.raises(
        JobError, match=rf"extract\.seq_len={seq_len} has no room .* raise extract\.seq_len to {overlap + 2}"
    ):
        cut(load_tokenizer(tmp_path), "abcdef", TooLong.split, seq_len, overlap=overlap)
