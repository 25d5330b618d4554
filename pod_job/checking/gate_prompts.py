"""Prompts of the parity gate: as short as what they have to show allows, whatever extract.seq_len is. No jax.

The first of them reaches past the sliding window, and further where rotary embeddings are scaled for long contexts;
the others share its row, so that the border between two prompts is crossed. Workstation and hosts come to the same.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int32

from pod_job.config.generate import Mode
from pod_job.models.arch import Arch
from pod_job.planning.inputs import Inputs
from pod_job.prompts.prompt import Prompt

TOKENS, OTHER_TOKENS = 64, 32
"""Length of the first prompt and of every other one."""
PREFIX_TOKENS = 144
"""Tokens of a shared prefix that prompts of the gate begin with, more than a block of its slots; theirs come on top."""
PAST_WINDOW = 32
LARGEST_WINDOW = 1024
"""A larger one would cost too much to reach, see `windows_not_reached`."""
SCALED_TOKENS = 256
"""Length at which the angles of scaled rotary embeddings have moved apart from those without scaling."""
SAMPLES_READ = 16
"""Samples whose tokens the first prompt is made of, where the first is too short."""


def gate_prompts(inputs: Inputs) -> list[Prompt]:
    """Returns `parity.samples` prompts of the first samples; two of a single sample, so that there is a border."""
    extract, wanted = inputs.config.extract, inputs.config.parity.samples
    prompts = inputs.first_prompts(max(wanted, SAMPLES_READ))
    if not prompts:
        return []
    count = min(wanted, max(len(prompts), 2))
    prefix = inputs.prefix[:PREFIX_TOKENS]
    room, shared = extract.seq_len - len(prefix), np.array(prefix, np.int32)
    prompts = [with_prefix(prompt, shared, len(inputs.prefix)) for prompt in prompts]
    other = min(OTHER_TOKENS, max(1, room // 4))
    reach = min(first_length(inputs.arch), room - (other if count > 1 else 0))
    first = long_prompt(prompts, len(prefix) + max(1, reach))
    others = [cut(prompts[i % len(prompts)], len(prefix) + other) for i in range(1, count)]
    return [first, *others]


def with_prefix(prompt: Prompt, prefix: Int32[np.ndarray, " P"], tokens: int) -> Prompt:
    """Returns the prompt with that prefix in place of its first `tokens`."""
    return Prompt(prompt.sample, np.concatenate([prefix, prompt.token_ids[tokens:]])) if tokens else prompt


def first_length(arch: Arch) -> int:
    """Returns how many tokens show everything of a model that its positions change."""
    windows = [layer.window for layer in arch.attention if layer.window is not None]
    reachable = [window + PAST_WINDOW for window in windows if window <= LARGEST_WINDOW]
    scaled = any(layer.rope is not None and layer.rope.kind != "default" for layer in arch.attention)
    return max([TOKENS, *reachable, *([SCALED_TOKENS] if scaled else [])])


def windows_not_reached(inputs: Inputs, longest: int) -> list[int]:
    """Returns the sliding windows that prompts of the run can be longer than, and the gate's `longest` one is not."""
    config = inputs.config
    most = config.extract.seq_len + (config.generate.max_new_tokens if config.mode is Mode.generate else 0)
    windows = {layer.window for layer in inputs.arch.attention if layer.window is not None}
    return sorted(window for window in windows if longest <= window < most)


def long_prompt(prompts: list[Prompt], length: int) -> Prompt:
    """Returns the first prompt, lengthened by the others' tokens where it is shorter than that, or cut to it."""
    token_ids = np.concatenate([prompt.token_ids for prompt in prompts])[:length]
    return Prompt(prompts[0].sample, token_ids)


def cut(prompt: Prompt, length: int) -> Prompt:
    """Returns the prompt's beginning, with all rows."""
    return Prompt(prompt.sample, prompt.token_ids[:length])


def beginnings(prompts: Sequence[Prompt]) -> Iterator[tuple[int, Prompt]]:
    """Yields shorter beginnings of the prompts, the longest first, each with the number of its prompt.

    Where only last positions are stored they give more rows to compare, at no cost for the reference.
    """
    for number, prompt in enumerate(prompts):
        length = len(prompt.token_ids)
        for shorter in range(length - 3, 0, -max(4, length // 4)):
            yield number, cut(prompt, shorter)
