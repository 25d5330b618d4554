"""Rebuilds SmolLM2's tokenizer.json from the vocabulary, merges and token types in a GGUF file."""

from typing import Any

from gguf import GGUFReader, TokenType
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from pod_job.errors import JobError

# llama.cpp's name (`llama-vocab.cpp`) of the only pre-tokenizer that is built here.
PRE_TOKENIZER = "smollm"


def tokenizer_of(reader: GGUFReader) -> Tokenizer:
    """Returns the byte-level BPE of the file's `tokenizer.ggml.*` fields; it splits digits one by one as SmolLM2 does.

    Raises:
        JobError: the file has a tokenizer of another kind.
    """
    kind, pre = _field(reader, "model"), _field(reader, "pre")
    if (kind, pre) != ("gpt2", PRE_TOKENIZER):
        raise JobError(f"tokenizer {kind}/{pre} of the GGUF file: only gpt2/{PRE_TOKENIZER} can be rebuilt")
    tokens: list[str] = _field(reader, "tokens")
    # A byte-level token has no space (it is written Ġ), so the space in a merge separates its tokens.
    merges = [tuple(merge.split(" ")) for merge in _field(reader, "merges")]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    types = zip(tokens, _field(reader, "token_type"), strict=True)
    special = [token for token, token_type in types if token_type == TokenType.CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return tokenizer


def tokenizer_config_of(reader: GGUFReader) -> dict[str, Any]:
    """Returns the tokenizer_config.json of the file's tokenizer: special tokens, chat template, longest prompt."""
    tokens: list[str] = _field(reader, "tokens")

    def token(name: str) -> str:
        return tokens[_field(reader, f"{name}_token_id")]

    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": token("bos"),
        "eos_token": token("eos"),
        "unk_token": token("unknown"),
        "pad_token": token("padding"),
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": reader.fields["llama.context_length"].contents(),
        "chat_template": reader.fields["tokenizer.chat_template"].contents(),
    }


def _field(reader: GGUFReader, name: str) -> Any:
    return reader.fields[f"tokenizer.ggml.{name}"].contents()
