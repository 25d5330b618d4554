"""The run's own tokenizer, tokenizer/tokenizer.json: with it a run is decoded by itself, wherever its model is.

The file is the one of the library `tokenizers`, which holds no code and names no other file. Who wrote it may be a
stranger: only what turns token ids into text is read, and nothing in it can make a short text long.
"""

import contextlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from pod_job.errors import JobError, first_line, is_panic
from pod_job.formats.records import decode
from pod_job.run_folder.layout import TOKENIZER
from pod_job.storage.folder import Folder, NameTaken
from pod_job.terminal import no_backtraces

MOST_BYTES = 64 << 20
"""Size of the file; that of Gemma, with 262,144 tokens, has 33 MB."""
MOST_TOKEN_CHARACTERS = 2000
"""Length of a token; vocabularies have runs of some hundred spaces."""
DECODERS = ("ByteLevel", "ByteFallback", "Fuse", "Metaspace", "WordPiece", "BPEDecoder", "Strip", "CTC")
"""Steps of decoding that give at most a few characters for each character of a token."""
REPLACED = {"BPEDecoder": "suffix", "CTC": "word_delimiter_token"}
"""Texts that these steps replace by a space: one without a character is found between all others."""
MOST_STEPS = 32

Decode = Callable[[Sequence[int]], str]


class TokenizerFile(msgspec.Struct):
    """The parts of the file that decoding needs, as they are."""

    model: msgspec.Raw
    added_tokens: list[Any] = []
    decoder: Any = None


def store_tokenizer(folder: Folder, tokenizer: Any) -> bool:
    """Stores a Hugging Face tokenizer in the run folder; one that is there stays.

    Returns:
        False for a tokenizer that has no such file, as those that are written in Python, and for one that is too large.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = b"" if backend is None else backend.to_str().encode()
    if not 0 < len(content) <= MOST_BYTES:
        return False
    with contextlib.suppress(NameTaken):
        folder.create(TOKENIZER, [content])
    return True


def copy_tokenizer(source: Folder, target: Folder) -> None:
    """Copies the tokenizer of one run to another that holds the same rows; a run without one has none to copy."""
    with contextlib.suppress(FileNotFoundError, NameTaken):
        if len(content := source.read(TOKENIZER, 0, MOST_BYTES + 1)) <= MOST_BYTES:
            target.create(TOKENIZER, [content])


def read_decoder(folder: Folder) -> Decode:
    """Returns what turns token ids into text.

    Raises:
        JobError: the run has no tokenizer, or one that is damaged or too large.
    """
    name = f"{folder.url}/{TOKENIZER}"
    try:
        data = folder.read(TOKENIZER, 0, MOST_BYTES + 1)
    except FileNotFoundError:
        raise JobError(f"{name} is missing, as in a run of an earlier version") from None
    if len(data) > MOST_BYTES:
        raise JobError(f"{name} is larger than {MOST_BYTES >> 20} MiB; no tokenizer is")
    file = decode(data, TokenizerFile, name)
    try:
        check_decoder(file.decoder)
        tokenizer = _tokenizer(file)
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise JobError(f"{name} is not a tokenizer that can be decoded with ({first_line(error)})") from error
    return lambda ids: tokenizer.decode(list(ids), skip_special_tokens=False) if min(ids, default=0) >= 0 else ""


def check_decoder(step: Any) -> None:
    """Raises ValueError for a step of decoding that can make a text longer, or search it for as long as it likes."""
    if step is None:
        return
    if step["type"] == "Sequence":
        if len(step["decoders"]) > MOST_STEPS:
            raise ValueError(f"its decoder has {len(step['decoders'])} steps")
        for inner in step["decoders"]:
            check_decoder(inner)
    elif not step.get(REPLACED.get(step["type"], "type")):
        raise ValueError(f"its decoder has a step {step['type']} that doubles a text")
    elif step["type"] == "Replace":
        pattern = step["pattern"].get("String")
        if not pattern or len(step["content"]) > len(pattern):
            raise ValueError(f"its decoder replaces {step['pattern']}"[:100])
    elif step["type"] not in DECODERS:
        raise ValueError(f"its decoder has a step {step['type']}"[:100])


def _tokenizer(file: TokenizerFile) -> Any:
    from tokenizers import Tokenizer  # imports for half a second

    parts = {"version": "1.0", "added_tokens": file.added_tokens, "decoder": file.decoder}
    head = json.dumps(parts)[:-1].encode()
    try:
        with no_backtraces():
            tokenizer = Tokenizer.from_buffer(head + b', "model": ' + bytes(file.model) + b"}")
        longest = max(map(len, tokenizer.get_vocab()), default=0)
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        raise ValueError(first_line(error)) from error
    if longest > MOST_TOKEN_CHARACTERS:
        raise ValueError(f"it has a token of {longest} characters")
    return tokenizer
