"""Request that this host stop: SIGTERM, the notice that the machine is being taken away, or the limit of its cost.

The host then begins no further batch, commits those it holds, and ends; its watchdog sees to it that it is in time.
"""

import logging
import os
import signal
import threading
import time
import urllib.request
from types import FrameType
from typing import Any

from pod_job import environment

# https://cloud.google.com/compute/docs/instances/create-use-spot#detect-preemption
NOTICE = "http://{host}/computeMetadata/v1/instance/preempted?wait_for_change=true"
NOTICE_TIMEOUT_S, RETRY_S = 600.0, 30.0

log = logging.getLogger("pod_job")


class StopRequest:
    """True once a signal or a notice has come, `reason`. A context manager, which restores the handler of SIGTERM."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self._before: tuple[Any, int] | None = None
        self._wakeup = -1

    def __bool__(self) -> bool:
        return self.reason is not None

    def __enter__(self) -> "StopRequest":
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            handler, wakeup = self._before
            signal.signal(signal.SIGTERM, handler)
            signal.set_wakeup_fd(wakeup)
            os.close(self._wakeup)  # ends the listener

    def on_signal(self) -> None:
        """Handles SIGTERM from now on, in place of jax too, which sets its own handler when it starts.

        Python runs a handler only between two steps of the main thread, which may be minutes within a compilation. The
        byte that comes through the pipe is there at once, for a thread.
        """
        before = signal.signal(signal.SIGTERM, self._signalled)
        if self._before is None:
            reading_end, self._wakeup = os.pipe()
            os.set_blocking(self._wakeup, False)
            self._before = before, signal.set_wakeup_fd(self._wakeup, warn_on_full_buffer=False)
            threading.Thread(target=self._listen, args=[reading_end], name="signals", daemon=True).start()

    def on_notice(self) -> None:
        """Waits for the notice of a preemption in a thread."""
        threading.Thread(target=self._wait_for_notice, name="preemption", daemon=True).start()

    def on_limit(self) -> None:
        """Requests the stop when the run has cost what it may, as the launcher has told this process, if it has."""
        left_s = os.environ.get(environment.LEFT_S)
        if left_s:
            timer = threading.Timer(float(left_s), self.request, [os.environ.get(environment.LIMIT, "limit reached")])
            timer.daemon = True
            timer.start()

    def request(self, reason: str) -> None:
        """Requests the stop; the first reason counts."""
        if self.reason is None:
            self.reason = reason
            log.info("%s: no further batch is begun", reason)

    def _signalled(self, signum: int, frame: FrameType | None) -> None:
        self.request(signal.Signals(signum).name)

    def _listen(self, reading_end: int) -> None:
        while signal_number := os.read(reading_end, 1):
            if signal_number[0] == signal.SIGTERM:
                self.request(signal.SIGTERM.name)
        os.close(reading_end)

    def _wait_for_notice(self) -> None:
        host = os.environ.get(environment.METADATA_SERVER, "metadata.google.internal")
        request = urllib.request.Request(NOTICE.format(host=host), headers={"Metadata-Flavor": "Google"})
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        while True:
            try:
                with opener.open(request, timeout=NOTICE_TIMEOUT_S) as answer:
                    if answer.read() == b"TRUE":
                        return self.request("notice of preemption")
            except OSError as error:
                log.warning("no notice of preemption can be had: %s", error)
                time.sleep(RETRY_S)
