"""Documents of more tokens than a row has: the parts of them that are read. No jax.

Every part has the document's begin token, where it has one.
"""

from collections.abc import Iterator

import numpy as np

from pod_job.config.extract import TooLong
from pod_job.errors import JobError
from pod_job.prompts.prompt import Origin, PromptRules


def parts(length: int, begin: int, rules: PromptRules) -> Iterator[Origin]:
    """Yields the parts of a document of `length` tokens, of which the first `begin` are repeated in each part.

    Raises:
        JobError: a row has no room for a token besides those that are repeated.
    """
    if rules.concat is not None:
        yield Origin(0, np.arange(length, dtype=np.int32))
        return
    S, overlap = rules.seq_len, rules.extract.overlap
    if length <= S or rules.too_long is TooLong.head:
        yield Origin(0, np.arange(min(length, S), dtype=np.int32))
        return
    if begin + overlap >= S:
        raise JobError(
            f"extract.seq_len={S} has no room for a new token beside the begin token and extract.overlap={overlap}; "
            f"raise extract.seq_len to {begin + overlap + 1} or more"
        )
    head = np.arange(begin, dtype=np.int32)
    if rules.too_long is TooLong.tail:
        yield Origin(0, np.concatenate([head, np.arange(length - S + begin, length, dtype=np.int32)]))
        return
    yield Origin(0, np.arange(S, dtype=np.int32))
    for window, start in enumerate(range(S, length, S - begin - overlap), start=1):
        stop = min(start + S - begin - overlap, length)
        places = np.concatenate([head, np.arange(start - overlap, stop, dtype=np.int32)])
        yield Origin(window, places, range(begin, begin + overlap))
