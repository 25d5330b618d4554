"""The stages between tasks and commits, each in its own thread with a bounded queue to the next.

tokenise and pack (feeder thread) -> compute (devices) -> copy and assemble (this thread, one step behind) -> commit
(writer threads). A slow stage makes those before it wait; nothing piles up.
"""

import statistics
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from jax.sharding import NamedSharding

from pod_job.config.schema import ExtractConfig
from pod_job.extraction.assembly import OpenBatch
from pod_job.extraction.feeder import Feeder, anyone, batch_prompts
from pod_job.extraction.feeding import Feeding
from pod_job.extraction.packing import StepInput, lay_out, pack_steps
from pod_job.extraction.step import Step, StepOutput, place
from pod_job.extraction.transfer import local_rows, start_copy
from pod_job.extraction.writers import Writers
from pod_job.formats.safetensors import DTYPE_OF
from pod_job.host.reporter import Reporter
from pod_job.host.stop_request import StopRequest
from pod_job.planning.inputs import Inputs
from pod_job.prompts.special import special_ids, special_tokens
from pod_job.prompts.tokens import Prompt
from pod_job.storage.buffers import Pool

STEPS_TIMED = 256  # the last ones, of which the median is reported


def extract(
    step: Step,
    params: Any,
    feeder: "Feeder",
    rows: NamedSharding,
    feeding: Feeding,
    writers: "Writers",
    reporter: Reporter,
) -> None:
    """Runs steps until no feeder has prompts left; results go to `writers` while the next step runs.

    Each step tells whether any feeder has a step two further on, so every host stops after the same one and none
    waits for an answer: the flag of step k is read while step k + 1 runs.
    """
    wanted = deque(anyone([feeder.has(0), feeder.has(1)]))
    started = before = time.monotonic()
    times: deque[float] = deque(maxlen=STEPS_TIMED)
    earlier: tuple[StepInput, StepOutput] | None = None
    while wanted.popleft():
        item = feeder.take()
        output = step(params, *place(item, feeder.has(1), rows, feeding))
        start_copy(output)
        if earlier is not None:
            wanted.append(collect(*earlier, feeder, writers, reporter))
            times.append(time.monotonic() - before)
            reporter.set(step_s=statistics.median(times))
        earlier, before = (item, output), time.monotonic()
        reporter.set(seconds=before - started)
    if earlier is not None:
        collect(*earlier, feeder, writers, reporter)
    writers.finish()
    reporter.set(seconds=time.monotonic() - started)


def collect(item: StepInput, output: StepOutput, feeder: "Feeder", writers: "Writers", reporter: Reporter) -> bool:
    """Files a step's results under their batches, hands on those that are whole, returns the step's `more`."""
    activations, more = output
    if feeder.writes:
        shards = {name: local_rows(array) for name, array in activations.items()}
        for placed in item.placed:
            if feeder.open[placed.batch].put(placed, shards):
                writers.commit(feeder.open.pop(placed.batch).finish())
        reporter.add(steps=1, tokens=item.tokens, positions=item.token_ids.size)
    return bool(more)


def packed_feeder(
    batches: Sequence[int],
    inputs: Inputs,
    tokenizer: Any,
    config: ExtractConfig,
    rows: int,
    writes: bool,
    reporter: Reporter,
    stop: StopRequest,
) -> Feeder:
    """For `extract`: prompts packed into steps of `rows` rows."""
    dtype, control, pool = DTYPE_OF[config.dtype.value], special_ids(tokenizer), Pool()

    def open_batch(batch: int, prompts: list[Prompt]) -> OpenBatch:
        special = [special_tokens(prompt, control) for prompt in prompts]
        return OpenBatch(batch, prompts, special, config, inputs.widths, dtype, pool)

    return Feeder(
        batches,
        lambda batch: batch_prompts(batch, inputs, tokenizer, config),
        open_batch,
        lambda queued: pack_steps(queued, rows, config.seq_len, config.prompts_per_row),
        lay_out([], rows, config.seq_len, config.prompts_per_row),
        writes,
        reporter,
        stop,
    )
