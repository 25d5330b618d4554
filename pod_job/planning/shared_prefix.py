"""Tokens that the prompts of a run begin with, which generation computes once. No jax.

They are found in some prompts from all over the run, so that none is tokenized for this that would not be soon: a
prompt that begins otherwise is read whole. All hosts and all starts look at the same prompts.
"""

from collections.abc import Sequence

import numpy as np

from pod_job.config.generate import Mode
from pod_job.config.schema import JobConfig
from pod_job.models.arch import Arch
from pod_job.prompts.prompt import Prompt
from pod_job.prompts.samples import Samples

LOOKED_AT = 64
"""Samples whose prompts are compared."""
SHORTEST = 128
"""Tokens; fewer cost less to read than to attend to apart from the rest."""


def shares(config: JobConfig, arch: Arch) -> bool:
    """Returns whether prompts may share a prefix: keys and values are all that is kept of it, and nothing is too far.

    Of a gated delta rule a state is kept, and a sliding window hides a part of the prefix that is another one for
    each position.
    """
    if config.mode is not Mode.generate or not config.generate.share_prefix:
        return False
    most = config.extract.seq_len + config.generate.max_new_tokens
    return not any(layer.delta or (layer.window is not None and layer.window < most) for layer in arch.attention)


def compared_samples(samples: Samples) -> Sequence[int]:
    """Returns indices of the samples that are looked at: the first ones where others may cost much to reach."""
    last = len(samples) - 1 if samples.contents is not None else min(len(samples), LOOKED_AT) - 1
    return np.unique(np.linspace(0, last, LOOKED_AT).astype(int)).tolist() if last > 0 else []


def common_prefix(prompts: Sequence[Prompt]) -> tuple[int, ...]:
    """Returns the tokens that all prompts begin with and none ends with; none where sharing them would gain nothing.

    They have to be half of the prompts' tokens. Attention to keys apart from the row costs each prefill of a TPU (of
    1,000 before rows of 8,192 positions a third, by the compiler), whatever it reads.
    """
    common: np.ndarray | None = None
    for prompt in prompts:
        ids = prompt.token_ids[:-1]
        if common is None:
            common = ids
        count = min(len(common), len(ids))
        differs = np.flatnonzero(common[:count] != ids[:count])
        common = common[: differs[0] if len(differs) else count]
    if common is None or len(common) < SHORTEST:
        return ()
    average = sum(len(prompt.token_ids) for prompt in prompts) / len(prompts)
    return tuple(common.tolist()) if 2 * len(common) >= average else ()
