"""Generation as every host runs it: waves of prompts through prefill and decode, completions and vectors to commits."""

import statistics
import time
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np

from pod_job.config.schema import ExtractConfig
from pod_job.extraction.assembly import SampleRows, make_batch
from pod_job.extraction.feeder import Feeder, on_any_host
from pod_job.extraction.packing import Queued
from pod_job.extraction.pipeline import STEPS_TIMED
from pod_job.extraction.writers import Writers
from pod_job.formats.quantized import from_rows
from pod_job.formats.safetensors import DTYPE_OF
from pod_job.generation.generator import Generator, stored_range
from pod_job.generation.waves import Wave, make_wave, make_waves
from pod_job.host.reporter import Reporter
from pod_job.prompts.special import special_tokens
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
        special_ids: Collection[int],
    ) -> None:
        """`widths` are those of the taps; `special_ids` the ids of special tokens."""
        self.number, self.prompts, self.config = number, prompts, config
        self.widths, self.special_ids = widths, list(special_ids)
        self.completions: list[Completion | None] = [None] * len(prompts)
        self.vectors: list[dict[str, np.ndarray]] = [{}] * len(prompts)

    def put(self, index: int, completion: Completion, vectors: dict[str, np.ndarray]) -> bool:
        """Takes one sample's result, vectors [positions stored, width]; returns whether the batch is complete."""
        self.completions[index], self.vectors[index] = completion, vectors
        return None not in self.completions

    def finish(self) -> tuple[Batch, list[Completion]]:
        """Returns the batch with its rows table, and the completions in the order of the samples."""
        completions = [completion for completion in self.completions if completion is not None]
        samples = [self._rows(*pair) for pair in zip(self.prompts, completions, strict=True)]
        dtype = DTYPE_OF[self.config.dtype.value]
        taps = {
            name: from_rows(np.concatenate([vectors[name] for vectors in self.vectors]), width, dtype)
            for name, width in self.widths.items()
        }
        return make_batch(self.number, samples, taps, self.config.exclude), completions

    def _rows(self, prompt: Prompt, completion: Completion) -> SampleRows:
        new = np.array(completion.token_ids, np.int32)
        special = np.concatenate([special_tokens(prompt, self.special_ids), np.isin(new, self.special_ids)])
        positions = stored_range(self.config.positions, completion.prompt_tokens, len(new))
        return SampleRows(prompt.sample, np.concatenate([prompt.token_ids, new]), special, positions)


class WaveFeeder(Feeder[Wave, GeneratedBatch]):
    """Feeder of `generate`: one prompt a row, and the tokens that earlier attempts at its batch have decided."""

    def make_inputs(self, queued: Iterator[Queued]) -> Iterator[Wave]:
        extract, decided = self.inputs.config.extract, {}
        prompts = self._note_decided(queued, decided)
        return make_waves(prompts, self.rows, extract.seq_len, extract.save_every_n_samples, decided)

    def empty_input(self) -> Wave:
        extract = self.inputs.config.extract
        return make_wave([], self.rows, extract.seq_len, extract.save_every_n_samples, {})

    def open_batch(self, number: int, prompts: list[Prompt]) -> GeneratedBatch:
        return GeneratedBatch(number, prompts, self.inputs.config.extract, self.inputs.widths, self.special_ids)

    def _note_decided(
        self, queued: Iterator[Queued], decided: dict[tuple[int, int], Sequence[int]]
    ) -> Iterator[Queued]:
        """Passes prompts on; before the first one of a batch, notes the tokens of its completions that are stored."""
        batch = None
        for item in queued:
            if item.batch != batch:
                batch = item.batch
                for index, completion in enumerate(read_completions(self.inputs.folder, batch)):
                    decided[batch, index] = completion.token_ids
            yield item


def generate(generator: Generator, feeder: WaveFeeder, writers: Writers, reporter: Reporter) -> None:
    """Runs waves until no feeder has prompts left."""
    going, started = on_any_host([feeder.has(0)])[0], time.monotonic()
    prefills, tokens = deque[float](maxlen=STEPS_TIMED), deque[float](maxlen=STEPS_TIMED)
    while going:
        wave = feeder.take()
        result = generator.run(wave, feeder.has(0))
        prefills.append(result.prefill_s)
        tokens.append(result.decode_s / result.read)
        reporter.set(step_s=statistics.median(prefills), token_s=statistics.median(tokens))
        going = result.more
        if feeder.writes:
            for row, item in enumerate(wave.queued):
                completion = result.completion(row, item.prompt, generator.ending)
                vectors = result.vectors(row, completion.prompt_tokens, len(completion.token_ids))
                if feeder.open[item.batch].put(item.index, completion, vectors):
                    writers.commit(*feeder.open.pop(item.batch).finish())
                reporter.add(tokens=completion.prompt_tokens + len(completion.token_ids))
            reporter.add(steps=1, positions=wave.token_ids.size + result.read * len(wave.token_ids))
        reporter.set(seconds=time.monotonic() - started)
    writers.finish()
    reporter.set(seconds=time.monotonic() - started)
