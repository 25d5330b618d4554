"""Splits of a dataset, as `datasets` writes them: `train`, `train[:10%]`, `train[100:]+test`, `all`."""

import re
from collections.abc import Sequence

from pod_job.errors import JobError
from pod_job.formats.records import Record

PART = re.compile(r"(?P<name>\w+)(?:\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?")


class SplitPart(Record, frozen=True):
    """Rows of a split from `start` to `stop`: numbers, negative ones from its end, or percentages; "": none."""

    name: str
    start: str = ""
    stop: str = ""

    def rows(self, count: int) -> range:
        """Returns the part of `count` rows."""
        start, stop = self._bound(self.start, 0, count), self._bound(self.stop, count, count)
        return range(start, max(start, stop))

    @staticmethod
    def _bound(text: str, default: int, count: int) -> int:
        if not text:
            return default
        percent = text.endswith("%")
        number = round(int(text[:-1]) / 100 * count) if percent else int(text)
        return min(count, max(0, number + count if number < 0 else number))


def split_parts(text: str) -> list[SplitPart]:
    """Returns the parts of a split expression. ValueError where it is none."""
    parts = []
    for word in text.replace(" ", "").split("+"):
        match = PART.fullmatch(word)
        if match is None:
            raise ValueError(f"{word!r} is no split; write train, or train[:10%]")
        parts.append(SplitPart(match["name"], match["start"] or "", match["stop"] or ""))
    return parts


def chosen_parts(path: str, text: str, names: Sequence[str]) -> list[SplitPart]:
    """Returns the parts of a split expression for the dataset at `path`, which has the splits `names`.

    `all` is every one of them.

    Raises:
        JobError: it is no split expression, or names a split that is not there.
    """
    if text == "all" and "all" not in names:
        return [SplitPart(name) for name in names]
    try:
        parts = split_parts(text)
        for part in parts:
            if part.name not in names:
                raise ValueError(f"it has no split {part.name!r}; it has {', '.join(names)}")
    except ValueError as error:
        raise JobError(f"tasks.path={path}, split={text} cannot be opened ({error})") from error
    return parts
