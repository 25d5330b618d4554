"""Files of a source, watched for changes while a run reads from them."""

import itertools
from collections.abc import Iterable
from pathlib import Path

from pod_job.errors import JobError

AT_A_TIME = 64
"""Files that one check looks at; a source of more is gone through in turn."""


def files_below(path: Path) -> list[Path]:
    """Returns the file at a path, or all that lie in the folder there, but hidden ones; none for a name on the hub."""
    if path.is_dir():
        return sorted(file for file in path.rglob("[!.]*") if file.is_file())
    return [path] if path.is_file() else []


class WatchedFiles:
    """Size and time of last change of files, as they were when this was made."""

    def __init__(self, files: Iterable[Path]) -> None:
        self._files = [(file, _state(file)) for file in files]
        self._turn = itertools.count()

    def check(self) -> None:
        """Raises JobError that names a file that was changed, replaced or removed since."""
        turns = -(-len(self._files) // AT_A_TIME)
        start = next(self._turn) % turns * AT_A_TIME if turns else 0
        for file, before in self._files[start : start + AT_A_TIME]:
            if _state(file) != before:
                raise JobError(changed(str(file)))


def changed(what: str) -> str:
    """Returns the error for a source, or a sample of it, that is no longer as it was when the run began."""
    return (
        f"tasks.path: {what} was changed after this start had read it; nothing of the change is stored: put it back, "
        "or use the new tasks with a storage.run_dir of their own, and start the job again"
    )


def _state(file: Path) -> tuple[int, int] | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns
