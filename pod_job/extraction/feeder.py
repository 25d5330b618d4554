"""Lays out prompts as step inputs in a thread of its own, ahead of the devices, and tells how often these waited."""

import itertools
import queue
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from pod_job.extraction.feeding import Feeding
from pod_job.extraction.packing import Queued
from pod_job.extraction.read_ahead import read_ahead
from pod_job.host.reporter import Reporter
from pod_job.host.stop_request import StopRequest
from pod_job.planning.inputs import Inputs
from pod_job.prompts.prompt import Tokenized

T = TypeVar("T")
InputT = TypeVar("InputT")
BatchT = TypeVar("BatchT")
STEPS_AHEAD = 4  # packed steps that may wait for the devices


@dataclass(frozen=True)
class End:
    """Last entry of a queue, with what went wrong in its thread."""

    error: BaseException | None


def on_any_host(flags: Sequence[bool]) -> list[bool]:
    """Returns for each flag whether it is true on any host."""
    if jax.process_count() == 1:
        return list(flags)
    return multihost_utils.process_allgather(np.array(flags)).any(axis=0).tolist()


def from_host_0(values: np.ndarray) -> np.ndarray:
    """Returns the values that host 0 has, on every host."""
    return np.asarray(multihost_utils.broadcast_one_to_all(values)) if jax.process_count() > 1 else values


class Feeder(ABC, Generic[InputT, BatchT]):
    """Step inputs of this host's batches, read, tokenized and laid out ahead of their use.

    `open` holds the batches under assembly, where this host keeps the results (`writes`).
    """

    ahead = STEPS_AHEAD
    """Inputs that may wait for the devices."""

    def __init__(
        self, batches: Iterable[int], inputs: Inputs, feeding: Feeding, reporter: Reporter, stop: StopRequest
    ) -> None:
        """Once there is a request to `stop`, no more batches are begun."""
        self.inputs, self.rows, self.writes = inputs, feeding.feeder_rows, feeding.writes
        self.reporter, self.stop = reporter, stop
        self.open: dict[int, BatchT] = {}
        self._without_prompts: deque[BatchT] = deque()
        self._steps = Prefetch(self.make_inputs(self._queue_prompts(batches)), self.ahead)
        self._ahead: deque[InputT] = deque()

    @abstractmethod
    def make_inputs(self, queued: Iterator[Queued]) -> Iterator[InputT]:
        """Yields step inputs that hold the prompts."""

    @abstractmethod
    def open_batch(self, number: int, tokenized: Tokenized) -> BatchT:
        """Returns what the results of a batch are assembled in."""

    def has(self, n: int) -> bool:
        """Returns whether there is a step `n` after the next one."""
        self._ahead.extend(itertools.islice(self._steps, max(0, n + 1 - len(self._ahead))))
        return len(self._ahead) > n

    def take(self) -> InputT:
        """Returns the next step input; there must be one."""
        assert self.has(0)
        return self._ahead.popleft()

    def take_all(self) -> Iterator[InputT]:
        """Yields all step inputs."""
        while self.has(0):
            yield self.take()

    @property
    def waited_s(self) -> float:
        """Seconds that `has` and `take` have waited for inputs so far."""
        return self._steps.waited_s

    def take_empty(self) -> Iterator[BatchT]:
        """Yields, once, the batches so far of which no prompt can be used: no step completes them."""
        while self._without_prompts:
            yield self._without_prompts.popleft()

    def _queue_prompts(self, batches: Iterable[int]) -> Iterator[Queued]:
        for number, tokenized in read_ahead(self.inputs, batches, self.stop):
            prompts = tokenized.prompts
            if self.writes:
                batch = self.open_batch(number, tokenized)
                if prompts:
                    self.open[number] = batch
                else:
                    self._without_prompts.append(batch)
                self.reporter.add(samples=tokenized.samples, **dropped(tokenized))
            yield from (Queued(number, index, prompt) for index, prompt in enumerate(prompts))


def dropped(tokenized: Tokenized) -> dict[str, int]:
    """Returns the counters of tokens that no prompt has."""
    cut = sum(prompt.dropped > 0 for prompt in tokenized.prompts)
    return {"cut_samples": cut, "dropped_tokens": tokenized.dropped_tokens}


class Prefetch(Iterator[T]):
    """Items from a thread that runs at most `depth` ahead; its exception is raised here.

    `waited_s`: seconds that whoever takes items has waited for them so far.
    """

    def __init__(self, items: Iterable[T], depth: int) -> None:
        self.waited_s = 0.0
        self._ready: queue.Queue[T | End] = queue.Queue(depth)
        self._end: End | None = None
        threading.Thread(target=self._produce, args=[items], name="feeder", daemon=True).start()

    def __next__(self) -> T:
        if self._end is None:
            item = self._get()
            if not isinstance(item, End):
                return item
            self._end = item
            if item.error is not None:
                raise item.error
        raise StopIteration

    def _get(self) -> "T | End":
        try:
            return self._ready.get_nowait()
        except queue.Empty:
            asked = time.monotonic()
            item = self._ready.get()
            self.waited_s += time.monotonic() - asked
            return item

    def _produce(self, items: Iterable[T]) -> None:
        try:
            for item in items:
                self._ready.put(item)
            self._ready.put(End(None))
        except BaseException as error:
            self._ready.put(End(error))
