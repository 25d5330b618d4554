"""The documentation cannot rot: commands in it are taken by the real parsers, links lead somewhere, and what is made
from the code is as the code is."""

import importlib
import importlib.util
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from text_runs import text_run

from launch.__main__ import VERBS, make_parser
from pod_job.commands import command_line
from pod_job.config.load import conf_dir, load
from pod_job.errors import JobError
from pod_job.storage.open import open_folder
from tools.config_reference import page

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
ELSEWHERE = {"gcloud", "activate-global-python-argcomplete", "pip", "docker", "uv", "pre-commit", "export", "git"}
"""Programs of others, whose parsers are not here."""


def commands(text: str) -> Iterator[str]:
    """Command lines of fenced blocks: plain and sh lines that begin with a program, console lines with `$`."""
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if language == "console" and line.startswith("$ "):
                yield line[2:]
            elif language in ("", "sh", "bash") and re.match(r"(python|make|pip|gcloud) ", line):
                yield line


def all_commands() -> list[tuple[str, str]]:
    return [(path.name, line) for path in PAGES for line in dict.fromkeys(commands(path.read_text()))]


@pytest.mark.parametrize(("name", "line"), all_commands())
def test_a_command_is_accepted(name: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(line, comments=True)
    words = words[: words.index("...")] if "..." in words else words
    match words:
        case ["python", "-m", "launch", *rest]:
            options = make_parser().parse_intermixed_args(rest)
            assert options.verb in VERBS
            takes(options.overrides)
        case ["python", "-m", module, *rest] if module.startswith("pod_job."):
            assert module.removeprefix("pod_job.") in command_line.COMMANDS
            parsed(module, rest, monkeypatch)
        case ["python", "-m", module, *_]:
            assert importlib.util.find_spec(module) is not None
        case ["python", script, *_]:
            assert (ROOT / script).is_file()
        case ["make", target, *settings]:
            makes(target, settings)
        case [program, *_]:
            assert program in ELSEWHERE
    for extras in re.findall(r"\.\[([\w,]+)\]", line):
        known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert set(extras.split(",")) <= known.keys()


def takes(overrides: list[str]) -> None:
    """What a page leaves to the reader, such as the run folder, may be missing; nothing may be wrong."""
    try:
        load(overrides)
    except JobError as error:
        if "is not set" not in str(error):
            raise


def parsed(module: str, rest: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Parses the arguments with the command's own parser, and does not run it."""
    try:
        found = importlib.import_module(f"{module}.__main__")
    except ModuleNotFoundError:
        found = importlib.import_module(module)
    monkeypatch.setattr(found, "exit_status", lambda command: 0)
    assert found.main(rest) == 0


def makes(target: str, settings: list[str]) -> None:
    rules = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    experiments = {path.stem for path in (conf_dir() / "experiment").glob("*.yaml")}
    kind, _, experiment = target.partition("-")
    if target not in rules:
        assert kind in ("run", "plan", "watch", "sim")
        assert experiment in experiments
        given = [word for one in settings if one.startswith("ARGS=") for word in shlex.split(one[5:])]
        takes([f"experiment={experiment}", *given])


def test_the_configuration_page_is_made_from_the_schema() -> None:
    assert (ROOT / "docs" / "configuration.md").read_text() == page(), "stale: run `make docs`"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text())
    assert [target for target in targets if not (path.parent / target).exists()] == []


def test_every_page_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    assert [path.name for path in PAGES[1:] if f"({path.relative_to(ROOT).as_posix()})" not in readme] == []


def test_every_command_is_listed_and_helps(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs" / "commands.md").read_text()
    for name in command_line.COMMANDS:
        assert f"python -m pod_job.{name}" in text
        with pytest.raises(SystemExit) as ended:
            parsed(f"pod_job.{name}", ["--help"], monkeypatch)
        shown = capsys.readouterr().out
        assert ended.value.code == 0
        assert "examples:" in shown
        assert "exit status:" in shown


def test_examples_of_looking_at_a_run_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("first", "second", "mine"):
        text_run(open_folder(tmp_path / "runs" / name), tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    text = "\n".join(line for _, line in all_commands()) + "\npython -m pod_job.diff runs/first runs/second\n"
    ran = 0
    for line in dict.fromkeys(re.findall(r"^python -m pod_job\.(?:inspect|diff|verify) runs/.*", text, re.MULTILINE)):
        words = shlex.split(line)
        if not any(word.startswith("gs://") for word in words):
            assert importlib.import_module(words[2]).main(words[3:]) == 0, capsys.readouterr().err
            ran += 1
    assert ran >= 2
    assert "\x1b" not in capsys.readouterr().out  # no colours where nobody sees them


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("python -m launch wa", {"watch"}),
        ("python -m launch plan experiment=dem", {"demo"}),
        ("python -m launch run mesh.da", {"mesh.data="}),
    ],
)
def test_tab_completes(typed: str, offered: set[str], tmp_path: Path, require: Callable[[bool, str], None]) -> None:
    require(importlib.util.find_spec("argcomplete") is not None, "argcomplete")
    asked = {
        "_ARGCOMPLETE": "3",  # words of the command, as a shell says that completes `python -m launch`
        "_ARGCOMPLETE_COMP_WORDBREAKS": " =",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "answers"),
        "COMP_LINE": typed,
        "COMP_POINT": str(len(typed)),
    }
    subprocess.run([sys.executable, "-m", "launch"], env=os.environ | asked, cwd=ROOT, check=True)
    answers = (tmp_path / "answers").read_text().split("\v")
    assert {answer.strip() for answer in answers} == offered
