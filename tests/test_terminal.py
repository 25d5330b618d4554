"""Control characters that came from data reach no terminal, log or page, whichever way they are shown."""

import dataclasses
import io
import json
import logging
import sys
import traceback
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import numpy as np
import pytest
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from sample_runs import batch, finished_run, identity

from pod_job.commands import diff, inspect, report, verify
from pod_job.commands.command_line import exit_status
from pod_job.errors import JobError
from pod_job.finishing.merge import merge
from pod_job.run_folder.commit import commit_batch
from pod_job.run_folder.identity import claim
from pod_job.storage.open import open_folder
from pod_job.terminal import CONTROLS, LineFormatter, SafeConsole, error_line, escaped_output, one_line, printable

CLIPBOARD = "\x1b]52;c;cm0gLXJmIH4=\x07"
HOSTILE = {
    "clipboard": CLIPBOARD,
    "title": "\x1b]0;owned\x1b\\",
    "C1": "\x9b2J\x90\x85",
    "backspace": "safe\b\b\b\bevil",
    "return": "evil\rsafe",
    "delete": "\x7f",
    "NUL": "a\0b",
    "override": "a\u202egpj.exe\u2066\u200f",
    "separators": "a\u2028b\u2029c",
    "surrogate": "\ud83d",
    "tags": "\U000e0041\U000e007f",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_is_escaped_is_harmless_and_still_json(kind: str) -> None:
    text = HOSTILE[kind]
    assert not CONTROLS.search(printable(text))
    printable(text).encode()
    if kind not in ("tags", "title"):  # JSON spells the first as two surrogates; the second has a backslash
        assert json.loads(f'"{printable(text)}"') == text
    assert printable("naïve\t日本語\n👩‍👩‍👧 [b]") == "naïve\t日本語\n👩‍👩‍👧 [b]"
    assert one_line(f"a\n{text}\tb").isprintable() or kind == "return"
    assert "\n" not in one_line("a\nb")


def by_print(text: str) -> None:
    print(text)
    sys.stdout.writelines([text])


def by_error(text: str) -> None:
    raise JobError(f"task {text}: broken")


def by_traceback(text: str) -> None:
    try:
        raise ValueError(text)
    except ValueError:
        traceback.print_exc()


def by_console(text: str) -> None:
    SafeConsole().print(text, Text(text), Text.from_markup(escape(text)), markup=False)
    table = Table(text)
    table.add_row(escape(text))
    SafeConsole(stderr=True).print(table)


def by_live(text: str) -> None:
    with Live(console=SafeConsole(), auto_refresh=False) as live:
        live.update(Text(text), refresh=True)


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("way", [by_print, by_error, by_traceback, by_console, by_live])
def test_nothing_reaches_the_terminal(
    way: Callable[[str], None], kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def run() -> int:
        way(HOSTILE[kind])
        return 0

    exit_status(run)
    shown = "".join(capsys.readouterr())
    assert shown
    assert not CONTROLS.search(shown)


def test_colors_of_our_own_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with escaped_output():
        SafeConsole().print("[bold]\x1b]52;c[/]", highlight=False)
    assert stream.getvalue() == "\x1b[1m\\u001b]52;c\x1b[0m\n"


def test_an_error_that_quotes_megabytes_is_a_line_that_ends_with_the_fix() -> None:
    line = error_line(JobError("field=" + "x" * 10_000_000 + "\nis wrong; use another"))
    assert len(line) < 2000
    assert line.startswith("field=x")
    assert line.endswith("is wrong; use another")
    assert error_line(JobError("short\nline")) == "short\\nline"


def test_streams_are_as_before_after_a_command() -> None:
    before = sys.stdout, sys.stderr
    with escaped_output(), escaped_output():
        print("nested")
    assert (sys.stdout, sys.stderr) == before


def test_a_log_has_one_line_for_each_message() -> None:
    record = logging.LogRecord("pod_job", logging.INFO, "x.py", 1, "skipped: %s", (f"a\nERROR {CLIPBOARD}",), None)
    assert (
        LineFormatter("%(levelname)s %(message)s").format(record) == f"INFO skipped: a\\nERROR {printable(CLIPBOARD)}"
    )


class Page(HTMLParser):
    """Collects what could run or load something, and the text."""

    def __init__(self) -> None:
        super().__init__()
        self.active: list[tuple[str, str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "iframe", "object", "embed", "form", "base", "svg", "a"):
            self.active.append((tag, "", ""))
        for name, value in attrs:
            outward = name in ("src", "href", "action") and not str(value).startswith("data:")
            if name.startswith("on") or outward or "javascript:" in str(value):
                self.active.append((tag, name, value))


SCRIPTS = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'-alert(1)-'",
    "{{ 7 * 7 }}",
    "</title><svg onload=x>",
)
TAP = "layer_6.$x_{<script>"


@pytest.fixture(scope="module")
def hostile_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose model, tap and tasks have names that want to run something."""
    run = tmp_path_factory.mktemp("hostile") / "run"
    folder, names = open_folder(run), [*SCRIPTS, *list(HOSTILE.values())]
    names = [name for name in names if name != HOSTILE["surrogate"]]  # which no rows table can hold
    named = identity(8, (TAP,))
    model = msgspec.structs.replace(named.model, name="".join(names))
    claim(folder, msgspec.structs.replace(named, model=model))
    made = batch(1, 40, taps=(TAP,))
    made.rows.task_id[:] = np.resize(np.array(names, object), 40)
    np.asarray(made.taps[TAP])[::3] *= 100  # so that the page shows them
    commit_batch(folder, dataclasses.replace(made), host=0)
    merge(folder)
    return run


def test_no_command_shows_the_names_of_a_run_as_they_are(
    hostile_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finished_run(open_folder(tmp_path / "other"), [5])
    url = str(hostile_run)
    for command, words in (
        (inspect, [url]),
        (inspect, [url, "--row", "7"]),
        (inspect, [url, "--batch", "1"]),
        (inspect, [url, "--batch", "1", "--json"]),
        (inspect, [url, "--tap", TAP]),
        (inspect, [url, "--tap", CLIPBOARD]),
        (verify, [url]),
        (diff, [url, str(tmp_path / "other")]),
        (diff, [url, str(tmp_path / "other"), "--json"]),
    ):
        command.main(words)
        shown = "".join(capsys.readouterr())
        assert shown
        assert not CONTROLS.search(shown), (command.__name__, words)
        if "--json" in words:
            json.loads(shown)


def test_the_page_runs_nothing(hostile_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main([str(hostile_run)]) == 0, capsys.readouterr().err
    page = (hostile_run / "report" / "index.html").read_text()
    parser = Page()
    parser.feed(page)
    assert parser.active == []
    assert not CONTROLS.search(page)
    assert "default-src 'none'" in page
    assert "&lt;script&gt;" in page
    assert "49" not in page.partition("<h1>")[2].partition("</h1>")[0]


def run_with(stdout: io.TextIOWrapper | None, command: Callable[[], object]) -> tuple[int, str]:
    """Returns status and stderr of a command whose stdout is this stream."""
    errors, before = io.TextIOWrapper(io.BytesIO(), "utf-8"), (sys.stdout, sys.stderr)
    sys.stdout, sys.stderr = stdout, errors  # type: ignore[assignment]
    try:
        status = exit_status(lambda: (command(), 0)[1])
    finally:
        sys.stdout, sys.stderr = before
    errors.flush()
    return status, errors.buffer.getvalue().decode()  # type: ignore[attr-defined]


WRITERS: dict[str, Callable[[], object]] = {
    "print": lambda: print("x"),
    "much": lambda: print("x" * 100_000),
    "table": lambda: SafeConsole().print("x"),
    "refusal": lambda: print("x") or open_folder("s3://x"),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_output_that_finds_no_place_is_one_line(writer: str) -> None:
    with open("/dev/full", "w") as full:
        status, errors = run_with(full, WRITERS[writer])
    assert status == 2
    assert errors.count("\n") == 1
    assert (
        writer == "refusal"
        or errors == "error: the output cannot be written (No space left on device); send it elsewhere\n"
    )


@pytest.mark.parametrize("writer", WRITERS)
def test_a_stream_that_is_closed_is_written_to_by_nobody(writer: str) -> None:
    assert run_with(None, WRITERS[writer])[0] == (2 if writer == "refusal" else 0)


@pytest.mark.parametrize("show", [print, lambda text: SafeConsole().print(text)])
def test_what_an_encoding_lacks_is_escaped(show: Callable[[str], object]) -> None:
    out = io.BytesIO()
    stream = io.TextIOWrapper(out, "ascii")
    assert run_with(stream, lambda: show("naïve 日本")) == (0, "")
    stream.flush()
    assert out.getvalue().decode().strip() == "na\\xefve \\u65e5\\u672c"
