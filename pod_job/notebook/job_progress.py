"""Progress of a job that runs in this process, from the status it keeps in its run folder: on stderr."""

import threading
import time
from types import TracebackType

from rich.console import Console
from rich.status import Status

from pod_job.config.schema import JobConfig
from pod_job.run_folder.status import HostStatus, Phase, read_status
from pod_job.storage.folder import Folder
from pod_job.storage.open import open_folder

LOOK_S = 1.0  # a status is written at most every two seconds
PLAIN_EVERY_S = 10.0


class JobProgress:
    """Shows, while it is open, what the job does: a line in place on a terminal, and elsewhere a line now and then."""

    def __init__(self, folder: Folder, host: int, attempt: str) -> None:
        """`host` and `attempt` name the status of the job in this process."""
        self.folder, self.host, self.attempt = folder, host, attempt
        self.console = Console(stderr=True)
        self.started, self.began = time.time(), time.monotonic()
        self.line: Status | None = None
        self.shown, self.shown_at = str(Phase.counting), self.began  # nothing to say yet, and an error is one line
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._watch, name="progress", daemon=True)

    def __enter__(self) -> "JobProgress":
        if self.console.is_terminal:
            self.line = self.console.status(str(Phase.counting))
            self.line.start()
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stopping.set()
        self.thread.join()
        if self.line is not None:
            self.line.stop()

    def _watch(self) -> None:
        while not self.stopping.wait(LOOK_S):
            try:
                status = read_status(self.folder, self.host, self.attempt)
            except Exception:  # the job itself says what is wrong with the folder
                continue
            if status is None or status.updated < self.started:  # of an earlier start by hand: they share one name
                continue
            if status.phase is not Phase.failed:  # the command's own last line says why
                self._show(status)

    def _show(self, status: HostStatus) -> None:
        text = progress_text(status)
        if self.line is not None:
            self.line.update(text)
            return
        moment = time.monotonic()
        new_phase = self.shown.partition(":")[0] != text.partition(":")[0]
        if new_phase or (text != self.shown and moment - self.shown_at >= PLAIN_EVERY_S):
            self.shown, self.shown_at = text, moment
            self.console.print(f"{moment - self.began:6.1f} s  {text}", highlight=False, soft_wrap=True)


def progress_of(config: JobConfig) -> JobProgress:
    """Returns the progress of the job with this configuration, which is to run in this process."""
    from pod_job.host.rendezvous import this_host  # jax, only once the configuration is sound

    host = this_host(config.pod)
    return JobProgress(open_folder(config.storage.run_dir), host.index, host.attempt)


def progress_text(status: HostStatus) -> str:
    """Returns the phase, and while it extracts how far it is and how fast."""
    if status.phase is not Phase.extracting:
        return str(status.phase)
    rate = f", {status.tokens / status.seconds:,.0f} tokens/s" if status.tokens and status.seconds else ""
    total = max(status.prompt_tokens, round(status.batches_total * status.batch_tokens))
    counts = f"tokens {status.prompt_tokens:,}/{total:,}, {status.batches} of {status.batches_total} batches written"
    return f"{status.phase}: {counts}{rate}"
