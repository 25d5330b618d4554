"""Tokens of a prompt that are no part of the text: begin and end marks, the control tokens of a chat."""

from collections.abc import Collection

import numpy as np
from jaxtyping import Bool, Integer

from pod_job.prompts.tokenizer import Tokenizer


def special_ids(tokenizer: Tokenizer) -> set[int]:
    """Returns the ids of the tokenizer's control tokens."""
    added = tokenizer.added_tokens_decoder.items()
    return {*tokenizer.all_special_ids, *(number for number, token in added if token.special)}


def special_tokens(
    token_ids: Integer[np.ndarray, " length"], is_chat: bool, ids: Collection[int]
) -> Bool[np.ndarray, " length"]:
    """Returns True where a token of a document is special: by its id and its place, never by its id alone.

    In a chat the template wrote every control token. In other prompts they count at both ends, where tokenizers put
    them; one in the midst of a text separates documents or is quoted, and the model attends to it as to any other.
    (Padding is never stored, so it needs no mark, even where its id is that of the end of text.)
    """
    marked = np.isin(token_ids, list(ids))
    if is_chat or marked.all():
        return marked
    ordinary = np.flatnonzero(~marked)
    places = np.arange(len(marked))
    return (places < ordinary[0]) | (places > ordinary[-1])
