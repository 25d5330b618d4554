"""Reads and tokenizes batches ahead of their use, in threads, in the order of the batches.

The tokenizers package holds Python's lock for a tenth of its time (measured), so threads scale.
"""

import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from contextlib import suppress
from itertools import islice
from typing import Any, TypeVar

from pod_job.host.stop_request import StopRequest
from pod_job.planning.inputs import Inputs
from pod_job.prompts.concat import joined
from pod_job.prompts.prompt import Tokenized

T = TypeVar("T")

CHUNK = 32
"""Samples that one thread tokenizes in one call: milliseconds of work."""
READERS = 2
"""Batches that are read at the same time: a bucket answers late, and then fast."""
MOST_TOKENIZERS = 16
"""Threads that tokenize; more would wait for Python's lock."""
STOP_EVERY_S = 0.2
"""Between two looks at the stop request, while a batch is waited for."""


class DaemonThreads:
    """Threads that run functions, in the order in which these are submitted, until the block is left.

    Unlike those of concurrent.futures they do not hold up the end of the process: a read from a bucket may hang.
    """

    def __init__(self, count: int, name: str) -> None:
        self.work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self.closed = False
        self.threads: list[threading.Thread] = [
            threading.Thread(target=self._run, name=f"{name} {i}", daemon=True) for i in range(count)
        ]

    def __enter__(self) -> "DaemonThreads":
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Drops what has not begun; what has runs to its end, which nobody waits for."""
        self.closed = True
        for _thread in self.threads:
            self.work.put(None)

    def submit(self, function: Callable[..., T], *arguments: Any) -> "Future[T]":
        """Returns the future result of the function, or of the exception that it raises."""
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(function(*arguments))
            except BaseException as error:  # a panic of the tokenizers package is no Exception
                future.set_exception(error)

        self.work.put(run)
        return future

    def _run(self) -> None:
        while (run := self.work.get()) is not None and not self.closed:
            run()


class Stopped(Exception):
    """Ends waiting for a batch at a request to stop."""


def tokenizer_threads() -> int:
    """Returns how many threads tokenize on this machine."""
    available = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return min(MOST_TOKENIZERS, len(available))


def batches_ahead(save_every_n_samples: int, threads: int) -> int:
    """Returns how many batches are read and tokenized at the same time: two, or as many small ones as busy the threads.

    They bound the memory: of each sample its text and its tokens are held.
    """
    return max(2, -(-2 * threads * CHUNK // save_every_n_samples))


def read_ahead(inputs: Inputs, batches: Iterable[int], stop: StopRequest) -> Iterator[tuple[int, Tokenized]]:
    """Yields the batches with their prompts, in order, until there is a request to `stop`.

    What reading or tokenizing a batch raises is raised where the batch would come.
    """
    threads = tokenizer_threads()
    # Each thread tokenizes its own samples; with threads of the package's own they would fight over the cores.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with DaemonThreads(READERS, "reader") as readers, DaemonThreads(threads, "tokenizer") as tokenizers:

        def begin(batch: int) -> "list[Future[Tokenized]]":
            samples = inputs.samples(batch)
            starts = range(0, len(samples), CHUNK)
            return [tokenizers.submit(inputs.tokenize, samples[start : start + CHUNK]) for start in starts]

        begun: deque[tuple[int, Future[list[Future[Tokenized]]]]] = deque()
        rest, ahead = iter(batches), batches_ahead(inputs.config.extract.save_every_n_samples, threads)
        with suppress(Stopped):
            while not stop:
                begun.extend((batch, readers.submit(begin, batch)) for batch in islice(rest, ahead - len(begun)))
                if not begun:
                    return
                batch, parts = begun.popleft()
                yield batch, joined([result(part, stop) for part in result(parts, stop)])


def result(future: "Future[T]", stop: StopRequest) -> T:
    """Returns the result or raises its exception; Stopped where there is a request to `stop` before it is there."""
    while not future.done():
        if stop:
            raise Stopped
        wait([future], STOP_EVERY_S)
    return future.result()
