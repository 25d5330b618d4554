"""A wish that this host end soon: SIGTERM, or the metadata server's notice that the machine is being taken away.

The host then begins no further batch, commits those it holds, and ends; a batch that takes longer than the machine's
last 30 seconds is abandoned, and nothing of it counts.
"""

import logging
import os
import signal
import threading
import time
import urllib.request
from types import FrameType

from pod_job import environment

# https://cloud.google.com/compute/docs/instances/create-use-spot#detect-preemption
NOTICE = "http://{host}/computeMetadata/v1/instance/preempted?wait_for_change=true"
NOTICE_TIMEOUT_S, RETRY_S = 600.0, 30.0

log = logging.getLogger("pod_job")


class StopWish:
    """Unwished until a signal or a notice comes; `reason` then says which."""

    def __init__(self) -> None:
        self.reason: str | None = None

    def __bool__(self) -> bool:
        return self.reason is not None

    def on_signal(self) -> None:
        """Takes SIGTERM over, from jax too, which puts its own handler there when it starts."""
        signal.signal(signal.SIGTERM, self._signalled)

    def on_notice(self) -> None:
        """Waits for the notice in a thread."""
        threading.Thread(target=self._wait_for_notice, name="preemption", daemon=True).start()

    def wish(self, reason: str) -> None:
        log.info("%s: no further batch is begun", reason)
        self.reason = reason

    def _signalled(self, signum: int, frame: FrameType | None) -> None:
        self.wish(signal.Signals(signum).name)

    def _wait_for_notice(self) -> None:
        host = os.environ.get(environment.METADATA_SERVER, "metadata.google.internal")
        request = urllib.request.Request(NOTICE.format(host=host), headers={"Metadata-Flavor": "Google"})
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        while True:
            try:
                with opener.open(request, timeout=NOTICE_TIMEOUT_S) as answer:
                    if answer.read() == b"TRUE":
                        return self.wish("notice of preemption")
            except OSError as error:
                log.warning("no notice of preemption can be had: %s", error)
                time.sleep(RETRY_S)
