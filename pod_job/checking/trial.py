"""Some prompts through the very programs that a run will use, on the whole mesh: what the parity gate compares.

Every host calls these functions at once; those that have no prompts to give feed empty rows.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax.sharding import NamedSharding

from pod_job.config.schema import ExtractConfig, Positions
from pod_job.extraction.feeding import Feeding
from pod_job.extraction.packing import Placed, Queued, StepInput, pack_steps
from pod_job.extraction.packing import lay_out as lay_out_step
from pod_job.extraction.step import Step, place
from pod_job.extraction.transfer import local_rows
from pod_job.generation.completions import Ending
from pod_job.generation.decoding import Programs
from pod_job.generation.generate import kept_positions, run_wave
from pod_job.generation.waves import lay_out as lay_out_wave
from pod_job.prompts.tokens import Prompt


@dataclass(frozen=True)
class Trial:
    """One prompt: its tokens with the new ones after them, and the vectors [kept positions, width] of every tap."""

    token_ids: np.ndarray
    kept: range
    vectors: dict[str, np.ndarray]


def try_step(
    step: Step,
    params: Any,
    rows: NamedSharding,
    feeding: Feeding,
    feeder_rows: int,
    config: ExtractConfig,
    prompts: Sequence[Prompt],
) -> list[Trial]:
    """One step, packed as always; the trials of the first prompts, as many as fit into it."""
    layout = (feeder_rows, config.seq_len, config.prompts_per_row)
    queued = [Queued(1, index, prompt) for index, prompt in enumerate(prompts)]
    item: StepInput = next(pack_steps(queued, *layout)) if queued else lay_out_step([], *layout)
    output, _ = step(params, *place(item, False, rows, feeding))
    taps = {name: np.concatenate(local_rows(array)) for name, array in output.items()}

    def trial(placed: Placed) -> Trial:
        token_ids = prompts[placed.index].token_ids
        if config.positions is Positions.last:
            kept, at = range(len(token_ids) - 1, len(token_ids)), slice(placed.slot, placed.slot + 1)
        else:
            kept, at = range(len(token_ids)), slice(placed.start, placed.start + placed.length)
        return Trial(token_ids, kept, {name: found[placed.row, at] for name, found in taps.items()})

    return [trial(placed) for placed in item.placed]


def try_generation(
    programs: Programs,
    ending: Ending,
    params: Any,
    rows: NamedSharding,
    feeding: Feeding,
    feeder_rows: int,
    config: ExtractConfig,
    prompts: Sequence[Prompt],
) -> list[Trial]:
    """Prefill and the first call of decode; the trials of the first prompts, one per row."""
    short = dataclasses.replace(ending.generate, max_new_tokens=programs.call_tokens)
    queued = [Queued(1, index, prompt) for index, prompt in enumerate(prompts[:feeder_rows])]
    wave = lay_out_wave(queued, feeder_rows, config.seq_len, config.save_every_n_samples, {})
    result = run_wave(programs, dataclasses.replace(ending, generate=short), params, wave, False, rows, feeding)

    def trial(row: int, prompt: Prompt) -> Trial:
        new, _ = result.ends[row]
        kept = kept_positions(config.positions, len(prompt.token_ids), new)
        token_ids = np.concatenate([prompt.token_ids, result.tokens[row, :new]])
        return Trial(token_ids, kept, result.vectors(row, len(prompt.token_ids), kept))

    return [trial(row, item.prompt) for row, item in enumerate(queued)]
