"""A folder for the temporary files of many processes, of which one that dies leaves its own behind."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def own_scratch() -> Iterator[None]:
    """Has the processes that are started here put temporary files into a new folder, which is removed at the end."""
    before = os.environ.get("TMPDIR")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.environ["TMPDIR"] = folder
        try:
            yield
        finally:
            del os.environ["TMPDIR"]
            if before is not None:
                os.environ["TMPDIR"] = before
