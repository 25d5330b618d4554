"""The stages between tasks and commits, each in its own thread with a bounded queue to the next.

tokenise and pack (feeder thread) -> compute (devices) -> copy and assemble (this thread, one step behind) -> commit
(writer threads). A slow stage makes those before it wait; nothing piles up.
"""

import itertools
import queue
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding

from pod_job.config import ExtractConfig, OnNonfinite
from pod_job.direct import Pool
from pod_job.extraction.assembly import OpenBatch
from pod_job.extraction.batches import batch_samples
from pod_job.extraction.forward import Step, StepOutput, local_rows, place, start_copy
from pod_job.extraction.packing import Queued, StepInput, lay_out, pack_steps
from pod_job.generation.completions import Completion, store_completions
from pod_job.inputs import Inputs
from pod_job.mesh import Feeding
from pod_job.prompts.special import special_ids, special_tokens
from pod_job.prompts.tokens import Prompt, tokenize
from pod_job.reporter import Reporter
from pod_job.run_folder.commit import Batch, commit_batch
from pod_job.run_folder.tensorfile import DTYPE_OF
from pod_job.stopping import StopWish
from pod_job.storage import Folder

T = TypeVar("T")

STEPS_AHEAD = 4  # packed steps that may wait for the devices
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


def anyone(mine: Sequence[bool]) -> list[bool]:
    """Per entry, whether it is true on any host."""
    if jax.process_count() == 1:
        return list(mine)
    return multihost_utils.process_allgather(np.array(mine)).any(axis=0).tolist()


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


class Feeder:
    """Step inputs of this host's batches, tokenised and laid out ahead in a thread of its own.

    `open` holds the batches under assembly, where this host keeps the results (`writes`).
    """

    def __init__(
        self,
        batches: Sequence[int],
        prompts: Callable[[int], list[Prompt]],
        open_batch: Callable[[int, list[Prompt]], Any],
        lay_out: Callable[[Iterator[Queued]], Iterator[Any]],
        empty: Any,
        writes: bool,
        reporter: Reporter,
        stop: StopWish,
    ) -> None:
        """`lay_out` makes step inputs of the prompts that `prompts` gives for each batch; `empty` is one of none.

        Once there is a wish to `stop`, no more batches are begun.
        """
        self.open: dict[int, Any] = {}
        self.writes, self.empty, self.reporter, self.stop = writes, empty, reporter, stop
        self._steps = prefetch(lay_out(self._queue_prompts(batches, prompts, open_batch)), STEPS_AHEAD)
        self._ahead: deque[Any] = deque()

    def has(self, n: int) -> bool:
        """Whether there is a step `n` after the next one."""
        self._ahead.extend(itertools.islice(self._steps, max(0, n + 1 - len(self._ahead))))
        return len(self._ahead) > n

    def take(self) -> Any:
        """The next step, or an empty one when there is none left."""
        return self._ahead.popleft() if self.has(0) else self.empty

    def _queue_prompts(
        self,
        batches: Sequence[int],
        prompts: Callable[[int], list[Prompt]],
        open_batch: Callable[[int, list[Prompt]], Any],
    ) -> Iterator[Queued]:
        for batch in itertools.takewhile(lambda _: not self.stop, batches):
            tokenized = prompts(batch)
            if self.writes:
                self.open[batch] = open_batch(batch, tokenized)
                self.reporter.add(samples=len(tokenized), cut_samples=sum(prompt.cut for prompt in tokenized))
            yield from (Queued(batch, index, prompt) for index, prompt in enumerate(tokenized))


def packed_feeder(
    batches: Sequence[int],
    inputs: Inputs,
    tokenizer: Any,
    config: ExtractConfig,
    rows: int,
    writes: bool,
    reporter: Reporter,
    stop: StopWish,
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


def batch_prompts(batch: int, inputs: Inputs, tokenizer: Any, config: ExtractConfig) -> list[Prompt]:
    """The tokenised prompts of a batch."""
    samples = inputs.tasks.samples
    chosen = batch_samples(batch, len(samples), config.save_every_n_samples)
    return tokenize(tokenizer, [samples[i] for i in chosen], config.seq_len, config.too_long)


class Writers:
    """Threads that commit batches; at most `threads` wait or run, then `commit` blocks."""

    def __init__(
        self,
        threads: int,
        folder: Folder,
        host: int,
        on_record: Callable[[dict[str, Any]], None],
        on_nonfinite: OnNonfinite = OnNonfinite.fail,
    ) -> None:
        self.folder, self.host, self.on_record, self.on_nonfinite = folder, host, on_record, on_nonfinite
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="writer")
        self.slots = threading.BoundedSemaphore(threads)
        self.running: deque[Future[None]] = deque()

    def __enter__(self) -> "Writers":
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown(cancel_futures=True)

    def commit(self, batch: Batch, completions: Sequence[Completion] = ()) -> None:
        """Queues a batch, and what its prompts were completed with; raises what went wrong with an earlier one."""
        while self.running and self.running[0].done():
            self.running.popleft().result()
        self.slots.acquire()
        self.running.append(self.pool.submit(self._commit, batch, completions))

    def finish(self) -> None:
        """Returns when all batches are committed; raises what went wrong with any."""
        while self.running:
            self.running.popleft().result()

    def _commit(self, batch: Batch, completions: Sequence[Completion]) -> None:
        try:
            if completions:
                store_completions(self.folder, batch.number, completions)
            self.on_record(commit_batch(self.folder, batch, self.host, self.on_nonfinite))
        finally:
            self.slots.release()


def prefetch(items: Iterable[T], depth: int) -> Iterator[T]:
    """The same items, made in a thread that runs at most `depth` ahead; its exception is raised here."""
    ready: queue.Queue[tuple[bool, Any]] = queue.Queue(depth)

    def produce() -> None:
        try:
            for item in items:
                ready.put((True, item))
            ready.put((False, None))
        except BaseException as error:
            ready.put((False, error))

    threading.Thread(target=produce, name="feeder", daemon=True).start()
    while True:
        going, item = ready.get()
        if going:
            yield item
        elif item is None:
            return
        else:
            raise item
