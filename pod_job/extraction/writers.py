"""Threads that commit finished batches while the devices go on."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from pod_job.config.schema import OnNonfinite
from pod_job.run_folder.commit import Batch, CommitRecord, commit_batch
from pod_job.run_folder.completions import Completion, store_completions
from pod_job.storage.folder import Folder


class Writers:
    """Threads that commit batches; at most `threads` wait or run, then `commit` blocks."""

    def __init__(
        self,
        threads: int,
        folder: Folder,
        host: int,
        on_record: Callable[[CommitRecord], None],
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
        """Queues a batch, and its prompts' completions; raises what went wrong with an earlier one."""
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
