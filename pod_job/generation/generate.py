"""Generation as every host runs it: waves of prompts through prefill and decode, completions and vectors to commits."""

import statistics
import time
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from pod_job.config.schema import ExtractConfig, Positions
from pod_job.extraction.assembly import whole_batch
from pod_job.extraction.feeder import Feeder, anyone, batch_prompts
from pod_job.extraction.feeding import Feeding
from pod_job.extraction.pipeline import STEPS_TIMED
from pod_job.extraction.transfer import local_rows, spread, start_copy
from pod_job.extraction.writers import Writers
from pod_job.formats.quantized import from_rows
from pod_job.formats.safetensors import DTYPE_OF
from pod_job.generation.completions import Ending, completed_text, find_end
from pod_job.generation.decoding import Programs
from pod_job.generation.waves import Wave, lay_out, make_waves
from pod_job.host.reporter import Reporter
from pod_job.host.stop_request import StopRequest
from pod_job.planning.inputs import Inputs
from pod_job.prompts.special import special_ids, special_tokens
from pod_job.prompts.tokens import Prompt
from pod_job.run_folder.commit import Batch
from pod_job.run_folder.completions import Completion, read_completions


class GeneratedBatch:
    """One batch under assembly: completions and vectors of its samples, in whatever order they are finished."""

    def __init__(
        self,
        number: int,
        prompts: Sequence[Prompt],
        config: ExtractConfig,
        widths: Mapping[str, int],
        control: Collection[int],
    ) -> None:
        """`widths` of the taps; `control` are the ids of special tokens."""
        self.widths, self.dtype = widths, DTYPE_OF[config.dtype.value]
        self.number, self.prompts, self.control = number, prompts, control
        self.positions, self.exclude = config.positions, config.exclude
        self.completions: list[Completion | None] = [None] * len(prompts)
        self.vectors: list[dict[str, np.ndarray]] = [{}] * len(prompts)

    def put(self, index: int, completion: Completion, vectors: dict[str, np.ndarray]) -> bool:
        """Takes one sample's result, vectors [positions kept, width]; True when the batch is whole."""
        self.completions[index], self.vectors[index] = completion, vectors
        return None not in self.completions

    def finish(self) -> tuple[Batch, list[Completion]]:
        completions = [completion for completion in self.completions if completion is not None]
        tokens = [
            np.concatenate([prompt.token_ids, np.array(completion.token_ids, np.int32)])
            for prompt, completion in zip(self.prompts, completions, strict=True)
        ]
        kept = [kept_positions(self.positions, one.prompt_tokens, len(one.token_ids)) for one in completions]
        special = [
            np.concatenate([special_tokens(prompt, self.control), np.isin(completion.token_ids, list(self.control))])
            for prompt, completion in zip(self.prompts, completions, strict=True)
        ]
        taps = {
            name: from_rows(np.concatenate([one[name] for one in self.vectors]), width, self.dtype)
            for name, width in self.widths.items()
        }
        samples = [prompt.sample for prompt in self.prompts]
        return whole_batch(self.number, samples, tokens, special, kept, taps, self.exclude), completions


def kept_positions(positions: Positions, prompt: int, new: int) -> range:
    """Positions stored of a sample with so many prompt tokens and new tokens."""
    match positions:
        case Positions.last:
            return range(prompt - 1, prompt + new - 1)
        case Positions.all:
            return range(prompt + new)
        case Positions.generated:
            return range(prompt, prompt + new)


def generate(
    programs: Programs,
    ending: Ending,
    params: Any,
    feeder: Feeder,
    rows: NamedSharding,
    feeding: Feeding,
    writers: Writers,
    reporter: Reporter,
) -> None:
    """Runs waves until no feeder has prompts left."""
    going, started = anyone([feeder.has(0)])[0], time.monotonic()
    prefills, tokens = deque[float](maxlen=STEPS_TIMED), deque[float](maxlen=STEPS_TIMED)
    while going:
        wave = feeder.take()
        result = run_wave(programs, ending, params, wave, feeder.has(0), rows, feeding)
        prefills.append(result.prefill_s)
        tokens.append(result.decode_s / result.read)
        reporter.set(step_s=statistics.median(prefills), token_s=statistics.median(tokens))
        going = result.more
        if feeder.writes:
            for row, item in enumerate(wave.queued):
                batch = feeder.open[item.batch]
                completion = result.completion(row, item.prompt, ending)
                kept = kept_positions(batch.positions, completion.prompt_tokens, len(completion.token_ids))
                if batch.put(item.index, completion, result.vectors(row, completion.prompt_tokens, kept)):
                    writers.commit(*feeder.open.pop(item.batch).finish())
                reporter.add(tokens=completion.prompt_tokens + len(completion.token_ids))
            reporter.add(steps=1, positions=wave.token_ids.size + result.read * len(wave.token_ids))
        reporter.set(seconds=time.monotonic() - started)
    writers.finish()
    reporter.set(seconds=time.monotonic() - started)


def wave_feeder(
    batches: Sequence[int],
    inputs: Inputs,
    tokenizer: Any,
    config: ExtractConfig,
    rows: int,
    writes: bool,
    reporter: Reporter,
    stop: StopRequest,
) -> Feeder:
    """For `generate`: waves of `rows` prompts, and what earlier attempts at their batches have decided."""
    decided: dict[tuple[int, int], Sequence[int]] = {}
    control = special_ids(tokenizer)

    def prompts(batch: int) -> list[Prompt]:
        for index, completion in enumerate(read_completions(inputs.folder, batch)):
            decided[batch, index] = completion.token_ids
        return batch_prompts(batch, inputs, tokenizer, config)

    return Feeder(
        batches,
        prompts,
        lambda batch, prompts: GeneratedBatch(batch, prompts, config, inputs.widths, control),
        lambda queued: make_waves(queued, rows, config.seq_len, config.save_every_n_samples, decided),
        lay_out([], rows, config.seq_len, config.save_every_n_samples, decided),
        writes,
        reporter,
        stop,
    )


@dataclass(frozen=True)
class WaveResult:
    """A wave on the host: per row the tokens chosen and where they end; taps [R, S or 1, width] and [R, n, width].

    `prefill_s` is how long prefill took, `decode_s` all calls of decode together, which read `read` tokens.
    """

    tokens: np.ndarray
    ends: list[tuple[int, str]]
    of_prompts: dict[str, np.ndarray]
    of_tokens: dict[str, np.ndarray]
    read: int
    more: bool
    prefill_s: float
    decode_s: float

    def completion(self, row: int, prompt: Prompt, ending: Ending) -> Completion:
        count, reason = self.ends[row]
        tokens = self.tokens[row, :count].tolist()
        text = completed_text(tokens, ending)
        return Completion(prompt.sample.task_id, prompt.sample.sample_idx, len(prompt.token_ids), tokens, text, reason)

    def vectors(self, row: int, prompt_tokens: int, kept: range) -> dict[str, np.ndarray]:
        """The kept positions' vectors: those of the prompt are at the end of its row, those of new tokens follow."""
        of_prompt = max(0, prompt_tokens - kept.start)
        vectors = {name: new[row, : len(kept) - of_prompt] for name, new in self.of_tokens.items()}
        if not of_prompt:
            return vectors
        return {name: np.concatenate([self.of_prompts[name][row, -of_prompt:], new]) for name, new in vectors.items()}


def run_wave(
    programs: Programs, ending: Ending, params: Any, wave: Wave, more: bool, rows: NamedSharding, feeding: Feeding
) -> WaveResult:
    """Prefill, then calls of decode until every row of every host has ended; copies overlap the next call."""
    began = time.monotonic()
    flags, free = np.full(len(wave.token_ids), more, np.int32), wave.force(0, 1)[:, 0]
    inputs = (wave.token_ids, wave.segment_ids, wave.positions, wave.numbers, free, flags)
    progress, of_prompts, first, any_more = programs.prefill(params, *spread(inputs, rows, feeding))
    start_copy((of_prompts, first))
    tokens, calls = gathered(first)[:, None], []
    prefilled = time.monotonic()
    ends: list[tuple[int, str] | None] = [None] * len(wave.queued)
    going, read = True, 0
    while going:
        stopped = np.array([end is not None for end in ends] + [True] * (len(tokens) - len(ends)))
        steering = spread((stopped, wave.force(read + 1, programs.call_tokens)), rows, feeding)
        progress, taps, chosen, unfinished = programs.decode(params, progress, *steering)
        start_copy((taps, chosen))
        if calls:
            calls[-1] = jax.tree.map(gathered, calls[-1])
        calls.append(taps)
        read += programs.call_tokens
        tokens = np.concatenate([tokens, gathered(chosen)], axis=1)
        for row, end in enumerate(ends):
            # The last token chosen was not read yet, so no vector belongs to it.
            ends[row] = end or find_end(tokens[row, :read].tolist(), ending)
        going = bool(unfinished)
    calls[-1] = jax.tree.map(gathered, calls[-1])
    decoded = time.monotonic()
    return WaveResult(
        tokens=tokens,
        ends=[end for end in ends if end is not None],
        of_prompts=jax.tree.map(gathered, of_prompts),
        of_tokens={name: np.concatenate([call[name] for call in calls], axis=1) for name in calls[0]},
        read=read,
        more=bool(any_more),
        prefill_s=prefilled - began,
        decode_s=decoded - prefilled,
    )


def gathered(array: jax.Array) -> np.ndarray:
    """This host's rows of an output."""
    return np.concatenate(local_rows(array))
