"""Generation as every host runs it: prompts to the generator, completions and vectors to commits."""

import statistics
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Int

from pod_job.config.extract import Exclude, ExtractConfig
from pod_job.errors import JobError
from pod_job.extraction.assembly import make_batch, row_columns
from pod_job.extraction.feeder import Feeder
from pod_job.extraction.packing import Queued
from pod_job.extraction.writers import Writers
from pod_job.formats.quantized import from_rows, transfer_layout
from pod_job.formats.safetensors import DTYPE_OF
from pod_job.generation.admission import Waiting
from pod_job.generation.generator import Generator, Progress, stored_range
from pod_job.host.reporter import Reporter
from pod_job.prompts.prompt import Prompt, Tokenized
from pod_job.prompts.special import special_ids
from pod_job.run_folder.commit import Batch
from pod_job.run_folder.completions import REPAIR, Completion, read_completions
from pod_job.run_folder.layout import outputs_file

PROMPTS_AHEAD = 1024
"""Prompts that may wait for free rows."""


class GeneratedBatch:
    """One batch under assembly: completions and vectors of its samples, in whatever order they are finished."""

    def __init__(
        self,
        number: int,
        tokenized: Tokenized,
        config: ExtractConfig,
        widths: Mapping[str, int],
        special_ids: Collection[int],
    ) -> None:
        """`widths` are those of the taps; `special_ids` the ids of special tokens."""
        self.number, self.tokenized, self.config = number, tokenized, config
        self.prompts = tokenized.prompts
        self.widths, self.special_ids = widths, list(special_ids)
        self.completions: list[Completion | None] = [None] * len(self.prompts)
        self.vectors: list[dict[str, np.ndarray]] = [{}] * len(self.prompts)

    def put(self, index: int, completion: Completion, vectors: dict[str, np.ndarray]) -> bool:
        """Takes one sample's result, vectors [positions stored, width]; returns whether the batch is complete."""
        self.completions[index], self.vectors[index] = completion, vectors
        return None not in self.completions

    def finish(self) -> tuple[Batch, list[Completion]]:
        """Returns the batch with its rows table, and the completions in the order of the samples."""
        completions = [completion for completion in self.completions if completion is not None]
        stored = [self._with_rows(*pair) for pair in zip(self.prompts, completions, strict=True)]
        dtype = DTYPE_OF[self.config.dtype.value]
        taps = {}
        for name, width in self.widths.items():
            length, row_dtype = transfer_layout(width, dtype)
            nothing = np.empty((0, length), row_dtype)  # a batch may be without samples
            pairs = zip(self.vectors, stored, strict=True)
            rows = np.concatenate([nothing, *(vectors[name][at] for vectors, (_, at) in pairs)])
            taps[name] = from_rows(rows, width, dtype)
        prompts = [prompt for prompt, _ in stored]
        return make_batch(self.number, self.tokenized, row_columns(prompts), taps), completions

    def _with_rows(self, prompt: Prompt, completion: Completion) -> tuple[Prompt, Int[np.ndarray, "rows"]]:
        """Returns the prompt with its new tokens and the rows of both, and which of its vectors are those rows'."""
        new = np.array(completion.token_ids, np.int32)
        special = np.concatenate([prompt.special_marks, np.isin(new, self.special_ids)])
        stored = stored_range(self.config.positions, completion.prompt_tokens, len(new))
        places = np.arange(stored.start, stored.stop, dtype=np.int32)
        at = np.arange(len(places))
        if Exclude.special in self.config.exclude:
            at = np.flatnonzero(~special[places])
        tokens = np.concatenate([prompt.token_ids, new])
        return replace(prompt, token_ids=tokens, special=special, rows=places[at], origin=None), at


class PromptFeeder(Feeder[Waiting, GeneratedBatch]):
    """Feeder of `generate`: prompt by prompt, with the tokens that earlier attempts at its batch have decided."""

    ahead = PROMPTS_AHEAD

    def make_inputs(self, queued: Iterator[Queued]) -> Iterator[Waiting]:
        per_batch, batch, decided = self.inputs.config.extract.save_every_n_samples, None, []
        for item in queued:
            if item.batch != batch:
                batch = item.batch
                decided = read_completions(self.inputs.folder, batch)
            number = (item.batch - 1) * per_batch + item.index
            yield Waiting(item, number, self.decided_tokens(item, decided))

    def decided_tokens(self, item: Queued, decided: Sequence[Completion]) -> Sequence[int]:
        """Returns the tokens that an earlier attempt decided for a prompt. JobError where they are another prompt's."""
        if not decided:
            return ()
        sample = item.prompt.sample.task_id, item.prompt.sample.sample_idx
        if item.index >= len(decided) or (decided[item.index].task_id, decided[item.index].sample_idx) != sample:
            name = f"{self.inputs.folder.url}/{outputs_file(item.batch)}"
            raise JobError(f"{name}: line {item.index + 1} is not of task {sample[0]}, sample {sample[1]}; {REPAIR}")
        return decided[item.index].token_ids

    def open_batch(self, number: int, tokenized: Tokenized) -> GeneratedBatch:
        special = special_ids(self.inputs.tokenizer)
        return GeneratedBatch(number, tokenized, self.inputs.config.extract, self.inputs.widths, special)


def commit_empty(feeder: PromptFeeder, writers: Writers) -> None:
    """Commits the batches of which no prompt can be used."""
    for batch in feeder.take_empty():
        writers.commit(*batch.finish())


def generate(generator: Generator, feeder: PromptFeeder, writers: Writers, reporter: Reporter) -> None:
    """Generates until no feeder has prompts left; after an earlier round, the status counts on."""
    before = reporter.status
    started = time.monotonic() - before.seconds
    progress = Progress(before.steps, before.waited_steps or 0, before.positions)
    for result in generator.run(feeder.take_all(), progress):
        if feeder.writes:
            batch, completion = result.queued.batch, result.completion
            if feeder.open[batch].put(result.queued.index, completion, result.vectors):
                writers.commit(*feeder.open.pop(batch).finish())
            read = completion.prompt_tokens
            reporter.add(tokens=read + len(completion.token_ids), prompt_tokens=read)
            commit_empty(feeder, writers)
        report_progress(progress, reporter, feeder, before.waited_s or 0.0)
        reporter.set(seconds=time.monotonic() - started)
    commit_empty(feeder, writers)
    writers.finish()
    reporter.set(seconds=time.monotonic() - started)


def report_progress(progress: Progress, reporter: Reporter, feeder: PromptFeeder, waited_s: float) -> None:
    """Reports the progress, with the median times; `waited_s`: seconds of the rounds before this one."""
    counts = {"steps": progress.prefills, "positions": progress.positions} if feeder.writes else {}
    reporter.set(
        step_s=statistics.median(progress.prefill_s),
        token_s=statistics.median(progress.token_s) if progress.token_s else 0.0,
        waited_steps=progress.waited,
        waited_s=round(waited_s + feeder.waited_s, 3),
        **counts,
    )
