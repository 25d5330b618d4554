"""Log probabilities and entropies of tokens from a reference's logits, in float64.

S positions of a sequence, V vocabulary.
"""

from collections.abc import Collection

import numpy as np
from jaxtyping import Float, Int

CHUNK = 64
"""Positions at a time."""


def facts_of_logits(
    logits: Float[np.ndarray, "S V"], token_ids: Int[np.ndarray, "S"], names: Collection[str]
) -> dict[str, Float[np.ndarray, "S 1"]]:
    """Returns the columns of `names` as `models.token_facts` defines them, in nats.

    Args:
        logits: after any scale and cap; those of position s are of the token at s + 1.
    """
    S = len(token_ids)
    logprob, entropy = np.full(S + 1, np.nan), np.empty(S)
    targets = np.append(token_ids[1:], 0)  # there is none after the last, whose value is left out
    for start in range(0, S, CHUNK):
        chunk = slice(start, min(start + CHUNK, S))
        values = logits[chunk].astype(np.float64)
        values -= values.max(axis=-1, keepdims=True)
        values -= np.log(np.exp(values).sum(axis=-1, keepdims=True))
        entropy[chunk] = -(np.exp(values) * values).sum(axis=-1)
        logprob[chunk.start + 1 : chunk.stop + 1] = values[np.arange(len(values)), targets[chunk]]
    facts = {"logprob": logprob[:S], "entropy": entropy}
    return {name: facts[name].astype(np.float32)[:, None] for name in names}
