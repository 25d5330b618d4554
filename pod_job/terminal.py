"""The borders to people: what came from data reaches a terminal, a log or a page with its control characters escaped.

A task's name, a model's name or an error may come out of a stranger's file, and a terminal obeys what it is sent: it
would write to the clipboard, change its title or hide a line.
"""

import io
import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from pod_job.errors import JobError, is_panic

CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 without tab and newline, delete, C1
    "\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff"  # direction of text, line separators, byte order mark
    "\ud800-\udfff\ufff9-\ufffb\U000e0000-\U000e007f]"  # half a surrogate pair, annotations, invisible tags
)
LINES = re.compile("[\t\n]")
MOST_ERROR = 1900
"""Characters of an error that are printed, of which the last say what to do."""


def printable(text: str) -> str:
    """Returns the text with every control character but tab and newline escaped, as JSON spells it."""
    return CONTROLS.sub(_escape, text)


def one_line(text: str) -> str:
    """Returns the text in one line, with every control character escaped."""
    return printable(LINES.sub(lambda found: "\\t" if found[0] == "\t" else "\\n", text))


def error_line(error: Exception) -> str:
    """Returns an error as a command prints it: one line, without the middle of one that quotes megabytes of a file."""
    line = one_line(str(error))
    if len(line) <= MOST_ERROR:
        return line
    return f"{line[: MOST_ERROR - 500]} [{len(line) - MOST_ERROR:,} characters] {line[-500:]}"


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode().replace("\\x", "\\u00")


class CheckedStream:
    """A text stream that names what keeps it from writing; all else is the stream's. `stream` is the one beneath."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        with output_errors():
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with output_errors():
            self.stream.flush()

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


class EscapedStream(CheckedStream):
    """A CheckedStream that writes its text escaped."""

    def write(self, text: str) -> int:
        return super().write(printable(text))


@contextmanager
def output_errors() -> Iterator[None]:
    """Turns what keeps output from being written into a JobError, as a full disk; but for a reader that has gone."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise JobError(f"the output cannot be written ({error.strerror}); send it elsewhere") from error


@contextmanager
def escaped_output() -> Iterator[None]:
    """Escapes whatever the block prints on stdout and stderr: results, errors, warnings, tracebacks, logs.

    Characters that the encoding of a stream lacks are escaped, too.
    """
    before = sys.stdout, sys.stderr
    for stream in map(unescaped, before):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    streams: list[Any] = [stream and EscapedStream(unescaped(stream)) for stream in before]
    sys.stdout, sys.stderr = streams
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


@contextmanager
def no_backtraces() -> Iterator[None]:
    """Holds back what the block writes to the descriptors of stdout and stderr; then it goes to stderr, escaped.

    Libraries in Rust write there past Python: names of a file that they do not know, and a backtrace before Python gets
    its panic. Where one panics, all of it is dropped.
    """
    if sys.stderr is None:  # its descriptor is closed
        yield
        return
    streams = {2: sys.stderr} if sys.stdout is None else {1: sys.stdout, 2: sys.stderr}
    flush(streams.values())
    with tempfile.TemporaryFile() as held:
        before = {descriptor: os.dup(descriptor) for descriptor in streams}
        for descriptor in streams:
            os.dup2(held.fileno(), descriptor)
        panicked = False
        try:
            yield
        except BaseException as error:
            panicked = is_panic(error)
            raise
        finally:
            flush(streams.values())
            for descriptor, copy in before.items():
                os.dup2(copy, descriptor)
                os.close(copy)
            held.seek(0)
            with suppress(OSError):
                os.write(2, b"" if panicked else printable(held.read().decode(errors="replace")).encode())


def flush(streams: Iterable[Any]) -> None:
    """Writes what the streams hold; to one that cannot be written somebody else will say so."""
    for stream in streams:
        with suppress(OSError, ValueError, JobError):
            stream.flush()


def unescaped(stream: Any) -> Any:
    return stream.stream if isinstance(stream, EscapedStream) else stream


class SafeConsole(Console):
    """A rich console that escapes texts and not its own colors and bars, which are control characters too."""

    def __init__(self, stderr: bool = False, width: int | None = None) -> None:
        stream = unescaped(sys.stderr if stderr else sys.stdout)
        checked: Any = stream and CheckedStream(stream)  # which has all of a stream's
        super().__init__(file=checked, width=width)

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
