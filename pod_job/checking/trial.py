"""Some prompts through the very programs that a run will use, on the whole mesh: what the parity gate compares.

Every host calls these functions at once; those that have no prompts to give feed empty rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pod_job.checking.gate_prompts import PREFIX_TOKENS, beginnings
from pod_job.config.schema import ExtractConfig, Positions
from pod_job.extraction.packing import Placed, Queued, make_step
from pod_job.extraction.step import Step, StepOutput
from pod_job.extraction.transfer import local_rows
from pod_job.generation.admission import Waiting
from pod_job.generation.generator import Generator, Progress, Result, stored_range
from pod_job.prompts.prompt import Prompt


@dataclass(frozen=True)
class Trial:
    """A prompt's tokens with the new ones after them, and the vectors [positions, width] of every tap.

    Columns by the model are among them, with width 1. With `averaged` there is one vector, the mean over the positions.
    """

    token_ids: np.ndarray
    positions: range
    vectors: dict[str, np.ndarray]
    averaged: bool = False

    @property
    def rows(self) -> int:
        return 1 if self.averaged else len(self.positions)


def try_program(program: Step | Generator, config: ExtractConfig, prompts: Sequence[Prompt]) -> list[Trial]:
    """Runs the program once; returns the trials of the first prompts, as many as fit into it."""
    if isinstance(program, Step):
        return try_step(program, config, prompts)
    return try_generation(program, config, prompts)


def try_step(step: Step, config: ExtractConfig, prompts: Sequence[Prompt]) -> list[Trial]:
    """Runs one step, packed like every other; where prompts have one vector each, with beginnings of the prompts."""
    queued = queued_for_gate(config.positions, prompts)
    rows = fill_rows(queued, step.feeding.feeder_rows, config.seq_len, config.prompts_per_row)
    item = make_step(rows, step.feeding.feeder_rows, config.seq_len, config.prompts_per_row)
    taps = local_taps(step(item, more=False))

    def trial(placed: Placed) -> Trial:
        positions = range(placed.length)
        at = slice(placed.start, placed.start + placed.length)
        if config.positions.one_per_prompt:
            at = slice(placed.slot, placed.slot + 1)
        if config.positions is Positions.last:
            positions = positions[-1:]
        if config.positions is Positions.first:
            positions = positions[:1]
        vectors = {name: rows[placed.row][at].copy() for name, rows in taps.items()}  # and not the whole rows
        return Trial(prompts[placed.index].token_ids, positions, vectors, averaged=config.positions is Positions.mean)

    return [trial(placed) for placed in item.placed]


def local_taps(output: StepOutput) -> dict[str, list[np.ndarray]]:
    """Returns the rows of each tap that this host has, and as taps of width 1 those of the columns by the model."""
    arrays = output.activations | {name: array[..., None] for name, array in output.facts.items()}
    return {name: [row for shard in local_rows(array) for row in shard] for name, array in arrays.items()}


def queued_for_gate(positions: Positions, prompts: Sequence[Prompt]) -> list[Queued]:
    """Returns the prompts of a step of the gate; where each has one vector, some of their beginnings, too."""
    queued = [Queued(1, index, prompt) for index, prompt in enumerate(prompts)]
    if positions.one_per_prompt:
        queued += [Queued(1, index, prompt) for index, prompt in beginnings(prompts)]
    return [replace(item, prompt=with_gate_rows(item.prompt, positions)) for item in queued]


def with_gate_rows(prompt: Prompt, positions: Positions) -> Prompt:
    """Returns the prompt with all rows, or the one that is selected, whatever its roles and special tokens."""
    length = len(prompt.token_ids)
    one = {Positions.last: [length - 1], Positions.first: [0]}.get(positions)
    return replace(prompt, rows=None if one is None else np.array(one, np.int32))


def fill_rows(queued: Sequence[Queued], rows: int, seq_len: int, most: int) -> list[list[Queued]]:
    """Returns what each row takes: every prompt goes into the first row that has room for it, or is left out."""
    filled: list[list[Queued]] = [[] for _ in range(rows)]
    for item in queued:
        for row in filled:
            length = sum(len(other.prompt.token_ids) for other in row) + len(item.prompt.token_ids)
            if len(row) < most and length <= seq_len:
                row.append(item)
                break
    return filled


def try_generation(generator: Generator, config: ExtractConfig, prompts: Sequence[Prompt]) -> list[Trial]:
    """Runs prefill and, for each prompt, one call of decode."""
    ending = generator.ending
    short = replace(ending.generate, max_new_tokens=generator.programs.call_tokens)
    once = replace(generator, ending=replace(ending, generate=short))
    if generator.prefix is not None:  # of which the gate's prompts have the beginning
        once = once.with_prefix(generator.prefix.token_ids[:PREFIX_TOKENS])
    waiting = [Waiting(Queued(1, index, prompt), index) for index, prompt in enumerate(prompts)]

    def trial(result: Result) -> Trial:
        prompt, new = result.queued.prompt, result.completion.token_ids
        positions = stored_range(config.positions, len(prompt.token_ids), len(new))
        return Trial(np.concatenate([prompt.token_ids, new]), positions, result.vectors)

    results = sorted(once.run(iter(waiting), Progress()), key=lambda result: result.queued.index)
    return [trial(result) for result in results]
