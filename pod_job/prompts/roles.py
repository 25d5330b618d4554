"""Roles of a chat's tokens: those of the messages that the parts of its text are. No jax."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Shaped

from pod_job.errors import JobError
from pod_job.prompts.chat import Rendered
from pod_job.prompts.sources.sample import BrokenTask, Sample
from pod_job.prompts.tokenizer import refused_by_tokenizer


@dataclass(frozen=True)
class RoleTokens:
    """A chat's token ids and the role of each; "" of what the template writes by itself."""

    token_ids: list[int]
    roles: Shaped[np.ndarray, " length"]


def tokens_with_roles(tokenizer: Any, sample: Sample, chat: Rendered) -> RoleTokens | BrokenTask:
    """Returns the tokens of a chat; a token that reaches into a part has its role.

    Of parts that the template marks, tokens are those of Hugging Face's `return_assistant_tokens_mask`, which leaves
    out the later bytes of a last character that is several tokens.

    Raises:
        JobError: the tokenizer does not tell which characters a token is of.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise JobError("extract.roles needs a tokenizer with a tokenizer.json, which tells where tokens begin and end")
    try:
        encoding = tokenizer(chat.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the tokenizers package is no Exception
        return refused_by_tokenizer(sample, error)
    starts, stops = np.array(encoding["offset_mapping"], np.int64).reshape(-1, 2).T
    roles = np.full(len(starts), "", object)
    for start, stop, role, marked in chat.spans:
        if marked:
            first, last = encoding.char_to_token(start), encoding.char_to_token(stop - 1)
            roles[len(roles) if first is None else first : last + 1 if last else len(roles)] = role
        else:
            roles[(starts < stop) & (stops > start)] = role
    return RoleTokens(encoding["input_ids"], roles)
