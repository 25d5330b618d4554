"""The borders to people: what came from data reaches a terminal, a log or a page with its control characters escaped.

A task's name, a model's name or an error may come out of a stranger's file, and a terminal obeys what it is sent: it
would write to the clipboard, change its title or hide a line.
"""

import logging
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 without tab and newline, delete, C1
    "\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff"  # direction of text, line separators, byte order mark
    "\ud800-\udfff\ufff9-\ufffb\U000e0000-\U000e007f]"  # half a surrogate pair, annotations, invisible tags
)
LINES = re.compile("[\t\n]")


def printable(text: str) -> str:
    """Returns the text with every control character but tab and newline escaped, as JSON spells it."""
    return CONTROLS.sub(_escape, text)


def one_line(text: str) -> str:
    """Returns the text in one line, with every control character escaped."""
    return printable(LINES.sub(lambda found: "\\t" if found[0] == "\t" else "\\n", text))


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode().replace("\\x", "\\u00")


class EscapedStream:
    """A text stream that writes its text escaped; all else is the stream's. `stream` is the one beneath."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        self.stream.write(printable(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def escaped_output() -> Iterator[None]:
    """Escapes whatever the block prints on stdout and stderr: results, errors, warnings, tracebacks, logs."""
    before = sys.stdout, sys.stderr
    streams: list[Any] = [EscapedStream(unescaped(stream)) for stream in before]
    sys.stdout, sys.stderr = streams
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def unescaped(stream: Any) -> Any:
    return stream.stream if isinstance(stream, EscapedStream) else stream


class SafeConsole(Console):
    """A rich console that escapes texts and not its own colors and bars, which are control characters too."""

    def __init__(self, stderr: bool = False, width: int | None = None) -> None:
        super().__init__(file=unescaped(sys.stderr if stderr else sys.stdout), width=width)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control or not CONTROLS.search(segment.text):
                yield segment
            else:
                yield Segment(printable(segment.text), segment.style)


class LineFormatter(logging.Formatter):
    """Gives each message one line; a traceback follows in its own."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # logging's own name
        record.message = one_line(record.message)
        return super().formatMessage(record)
