"""Tokenizes and packs prompts in a thread of its own, ahead of the devices."""

import itertools
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from pod_job.config.schema import ExtractConfig
from pod_job.extraction.packing import Queued
from pod_job.host.reporter import Reporter
from pod_job.host.stop_request import StopRequest
from pod_job.planning.batches import batch_samples
from pod_job.planning.inputs import Inputs
from pod_job.prompts.tokens import Prompt, tokenize

T = TypeVar("T")
STEPS_AHEAD = 4  # packed steps that may wait for the devices


def anyone(mine: Sequence[bool]) -> list[bool]:
    """Per entry, whether it is true on any host."""
    if jax.process_count() == 1:
        return list(mine)
    return multihost_utils.process_allgather(np.array(mine)).any(axis=0).tolist()


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
        stop: StopRequest,
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


def batch_prompts(batch: int, inputs: Inputs, tokenizer: Any, config: ExtractConfig) -> list[Prompt]:
    """The tokenised prompts of a batch."""
    samples = inputs.tasks.samples
    chosen = batch_samples(batch, len(samples), config.save_every_n_samples)
    return tokenize(tokenizer, [samples[i] for i in chosen], config.seq_len, config.too_long)


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
