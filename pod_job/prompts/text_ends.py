"""Tokens that a tokenizer puts before and after every text, against what its configuration declares."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer

from pod_job.errors import JobError
from pod_job.formats.json_text import read_json_file

PROBE = "The quick brown fox jumps over 13 lazy dogs."
"""Text of many different words and characters, which a tokenizer that works tells apart."""
CONFIG = "tokenizer_config.json"


@dataclass(frozen=True)
class TextEnds:
    """Token ids before and after a text: of most models a begin token, or nothing."""

    before: tuple[int, ...]
    after: tuple[int, ...]

    def once(self, ids: Integer[np.ndarray, " length"]) -> Integer[np.ndarray, " shorter"]:
        """Returns the ids with these ends once, where a text that has them itself got them again."""
        start, stop, before, after = 0, len(ids), len(self.before), len(self.after)
        while before and tuple(ids[start + before : start + 2 * before].tolist()) == self.before:
            start += before
        while after and stop - 2 * after >= start and tuple(ids[stop - 2 * after : stop - after]) == self.after:
            stop -= after
        return ids[start:stop]


def text_ends(tokenizer: Any) -> TextEnds:
    """Returns what the tokenizer adds to a text."""
    own = tokenizer(PROBE, add_special_tokens=False)["input_ids"]
    whole = tokenizer(PROBE)["input_ids"]
    start = next((i for i in range(len(whole) - len(own) + 1) if whole[i : i + len(own)] == own), None)
    if start is None:
        return TextEnds((), ())
    return TextEnds(tuple(whole[:start]), tuple(whole[start + len(own) :]))


def check_ends(folder: Path, tokenizer: Any) -> None:
    """Raises JobError where texts get no begin or end token that tokenizer_config.json declares, or one it denies.

    transformers 5 goes by tokenizer.json alone; transformers 4 followed the declaration.
    """
    try:
        declared = read_json_file(folder / CONFIG)
    except FileNotFoundError:
        return
    except (ValueError, OSError) as error:
        raise JobError(f"model.path={folder}: {CONFIG} is not readable JSON ({error}); copy it again") from error
    ends = text_ends(tokenizer)
    for kind, ids in (("bos", ends.before), ("eos", ends.after)):
        key, token = f"add_{kind}_token", getattr(tokenizer, f"{kind}_token_id", None)
        wanted = declared.get(key) if isinstance(declared, dict) else None
        if wanted is None or (token in ids if wanted else token is None or token not in ids):
            continue
        value = json.dumps(wanted)
        if token is None:
            raise JobError(f"model.path={folder}: {CONFIG} has {key}={value} and no {kind}_token; set one of the two")
        does = "adds none" if wanted else "adds one"
        raise JobError(
            f"model.path={folder}: {CONFIG} has {key}={value}, and the post_processor of tokenizer.json {does} to a "
            f"text; set {key} to {json.dumps(not wanted)}, or change the post_processor, as the model was trained"
        )
