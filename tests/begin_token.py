"""A begin token for the tokenizer of a tiny model, which has none."""

import json
from pathlib import Path

import tokenizers

BEGIN, END = 257, 256


def add_begin_token(model: Path, single: str = "<|im_start|> $A") -> None:
    """Makes the tokenizer add what `single` says to every text, and have a begin and an end token."""
    backend = tokenizers.Tokenizer.from_file(str(model / "tokenizer.json"))
    names = ("<|im_start|>", "<|endoftext|>")
    added = [(name, backend.token_to_id(name)) for name in names]
    backend.post_processor = tokenizers.processors.TemplateProcessing(single=single, special_tokens=added)
    backend.save(str(model / "tokenizer.json"))
    file = model / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"bos_token": names[0], "eos_token": names[1]}))
