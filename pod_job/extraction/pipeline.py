"""The stages between tasks and commits, each in its own thread with a bounded queue to the next.

tokenize and pack (feeder thread) -> compute (devices) -> copy and assemble (this thread, one step behind) -> commit
(writer threads). A slow stage makes those before it wait; nothing piles up.
"""

import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator

from pod_job.extraction.assembly import OpenBatch
from pod_job.extraction.feeder import Feeder, on_any_host
from pod_job.extraction.feeding import Feeding
from pod_job.extraction.packing import Queued, StepInput, make_step, pack_steps
from pod_job.extraction.step import Step, StepOutput
from pod_job.extraction.transfer import local_rows, start_copy
from pod_job.extraction.writers import Writers
from pod_job.host.reporter import Reporter
from pod_job.host.stop_request import StopRequest
from pod_job.planning.inputs import Inputs
from pod_job.prompts.prompt import Tokenized
from pod_job.storage.buffers import Pool

STEPS_TIMED = 256  # the last ones, of which the median is reported


class PackedFeeder(Feeder[StepInput, OpenBatch]):
    """Feeder of `extract`: several prompts are packed into each row."""

    def __init__(
        self, batches: Iterable[int], inputs: Inputs, feeding: Feeding, reporter: Reporter, stop: StopRequest
    ) -> None:
        self.pool = Pool()
        super().__init__(batches, inputs, feeding, reporter, stop)

    def make_inputs(self, queued: Iterator[Queued]) -> Iterator[StepInput]:
        extract = self.inputs.config.extract
        return pack_steps(queued, self.rows, extract.seq_len, extract.prompts_per_row)

    def take(self) -> StepInput:
        """Returns the next step input, or one without a prompt when there is none left."""
        extract = self.inputs.config.extract
        return super().take() if self.has(0) else make_step([], self.rows, extract.seq_len, extract.prompts_per_row)

    def open_batch(self, number: int, tokenized: Tokenized) -> OpenBatch:
        return OpenBatch(number, tokenized, self.inputs.config.extract, self.inputs.widths, self.pool)


FirstStep = Callable[[StepInput, StepOutput], None]
"""Looks at the first step before anything of it is stored, on every host at once."""


def extract(
    step: Step, feeder: PackedFeeder, writers: Writers, reporter: Reporter, first_step: FirstStep | None = None
) -> None:
    """Runs steps until no feeder has prompts left; results go to `writers` while the next step runs.

    Each step reports whether any feeder has a step two further on, so every host stops after the same one and none
    waits for an answer: the flag of step k is read while step k + 1 runs.
    """
    wanted = deque(on_any_host([feeder.has(0), feeder.has(1)]))
    before = time.monotonic()
    started = before - reporter.status.seconds  # of the rounds before this one
    times: deque[float] = deque(maxlen=STEPS_TIMED)
    earlier: tuple[StepInput, StepOutput] | None = None
    waited_s = 0.0
    while wanted.popleft():
        item, more = feeder.take(), feeder.has(1)
        # An input that came late while the devices still computed has cost nothing.
        idle = feeder.waited_s > waited_s and (earlier is None or is_computed(earlier[1]))
        output = step(item, more)
        start_copy(output)
        if earlier is None and first_step is not None:
            first_step(item, output)
        reporter.waited(idle, feeder.waited_s - waited_s)
        waited_s = feeder.waited_s
        if earlier is not None:
            wanted.append(collect(*earlier, feeder, writers, reporter))
            times.append(time.monotonic() - before)
            reporter.set(step_s=statistics.median(times))
        earlier, before = (item, output), time.monotonic()
        reporter.set(seconds=before - started)
    if earlier is not None:
        collect(*earlier, feeder, writers, reporter)
    commit_empty(feeder, writers)
    writers.finish()
    reporter.set(seconds=time.monotonic() - started)


def is_computed(output: StepOutput) -> bool:
    """Returns whether the devices are done with a step."""
    return output.more.is_ready()  # pyright: ignore[reportAttributeAccessIssue] (arrays of jax have it, their type not)


def commit_empty(feeder: PackedFeeder, writers: Writers) -> None:
    """Commits the batches of which no prompt can be used."""
    for batch in feeder.take_empty():
        writers.commit(batch.finish())


def collect(item: StepInput, output: StepOutput, feeder: PackedFeeder, writers: Writers, reporter: Reporter) -> bool:
    """Copies a step's results into their batches, hands on complete ones, and returns the step's `more`."""
    if feeder.writes:
        shards = {name: local_rows(array) for name, array in (output.activations | output.facts).items()}
        for placed in item.placed:
            if feeder.open[placed.batch].put(placed, shards):
                writers.commit(feeder.open.pop(placed.batch).finish())
        commit_empty(feeder, writers)
        reporter.add(steps=1, tokens=item.tokens, prompt_tokens=item.tokens, positions=item.token_ids.size)
    return bool(output.more)
