"""A folder for the temporary files of many processes, of which one that dies leaves its own behind."""

import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def own_scratch() -> Iterator[None]:
    """Has the processes that are started here put temporary files into a new folder, which is removed at the end.

    SIGTERM, as `timeout` sends it, ends the block as Ctrl-C does.
    """
    before, handler = os.environ.get("TMPDIR"), signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.environ["TMPDIR"] = folder
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, handler)
            del os.environ["TMPDIR"]
            if before is not None:
                os.environ["TMPDIR"] = before
