"""A stop text that no completion can contain is refused; every other is taken."""

import pytest
import tokenizers
from transformers import PreTrainedTokenizerFast

from pod_job.errors import JobError
from pod_job.prompts.stop_texts import check_stop_texts
from pod_job.prompts.tokenizer import Tokenizer, load_tokenizer
from tools.tiny_model import write_tiny_model


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(write_tiny_model(tmp_path_factory.mktemp("model"), layers=1))


@pytest.mark.parametrize("text", ["\n\n", "Input:", " ", "```", "é", "</answer>", "1 2\n"])
def test_texts_of_ordinary_tokens_are_taken(tokenizer: Tokenizer, text: str) -> None:
    check_stop_texts([text], tokenizer)


def test_a_special_token_is_refused_alone_and_within_a_text(tokenizer: Tokenizer) -> None:
    special = tokenizer.decode(tokenizer.all_special_ids[:1])
    for text in (special, f"end{special}"):
        with pytest.raises(JobError, match="can never occur: it has a special token"):
            check_stop_texts(["\n", text], tokenizer)


def test_a_text_that_the_tokenizer_cannot_write_is_refused() -> None:
    letters = {letter: number for number, letter in enumerate("abcdefghijklmnopqrstuvwxyz:")}
    uncased = tokenizers.Tokenizer(tokenizers.models.WordLevel(letters, unk_token="x"))
    uncased.normalizer = tokenizers.normalizers.Lowercase()
    uncased.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    uncased.decoder = tokenizers.decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=uncased)
    check_stop_texts(["input:"], tokenizer)
    with pytest.raises(JobError, match="'Input:' can never occur: it is a text that the model's tokenizer cannot"):
        check_stop_texts(["Input:"], tokenizer)
