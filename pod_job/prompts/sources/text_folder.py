"""A folder of plain text: every .txt file in it and below is one sample."""

from collections.abc import Iterator
from pathlib import Path

from pod_job.errors import JobError
from pod_job.prompts.sources.sample import BrokenTask, Key, Reason, Sample, Source, checked
from pod_job.prompts.sources.watched import WatchedFiles


def text_source(path: Path) -> Source:
    """Opens a folder of texts: files by their paths; task_id is the path within it, without the ending.

    Raises:
        JobError: there is no such folder.
    """
    if not path.is_dir():
        raise JobError(f"tasks.path={path} is not a folder; give a folder of .txt files")
    names = sorted(str(file.relative_to(path)) for file in path.rglob("*.txt"))

    def keys() -> Iterator[Key]:
        return ((number,) for number in range(len(names)))

    def load(key: Key) -> Sample:
        name = names[key[0]]
        try:
            text = (path / name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BrokenTask(f"tasks.path={path / name} is not readable UTF-8 text ({error})") from error
        if not text:
            raise BrokenTask(f"tasks.path={path / name} is empty", Reason.blank)
        return checked(f"tasks.path={path / name}", Sample(name.removesuffix(".txt"), 0, text))

    # Each file is read again when its sample is loaded, and held against what was read first.
    return Source(keys, load, WatchedFiles([]))
