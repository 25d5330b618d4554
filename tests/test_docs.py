"""The documentation cannot rot: commands in it are taken by the real parsers, links lead somewhere, and what is made
from the code is as the code is."""

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

from launch.__main__ import main
from launch.dispatch import parse
from launch.job_config import is_run_dir
from launch.verb_table import VERBS
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
            elif language in ("", "sh", "bash") and re.match(r"(pod-job|python|make|pip|gcloud) ", line):
                yield line


def all_commands() -> list[tuple[str, str]]:
    return [(path.name, line) for path in PAGES for line in dict.fromkeys(commands(path.read_text()))]


@pytest.mark.parametrize(("name", "line"), all_commands())
def test_a_command_is_accepted(name: str, line: str) -> None:
    words = shlex.split(line, comments=True)
    words = words[: words.index("...")] if "..." in words else words
    match words:
        case ["pod-job", *rest] | ["python", "-m", "launch", *rest]:
            verb_takes(rest)
        case ["python", "-m", module, *rest] if module.startswith("pod_job."):
            verb_takes([verb_of(module), *rest])
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


def verb_of(module: str) -> str:
    """The verb that `python -m MODULE` is too."""
    command = module.replace("pod_job.", "pod_job.commands.")
    return next(name for name, verb in VERBS.items() if verb.module == command)


def verb_takes(words: list[str]) -> None:
    """The verb takes these words; nothing is run."""
    _, options = parse(words)
    takes([word for word in getattr(options, "overrides", []) if not is_run_dir(word)])


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


def test_every_verb_is_listed_and_helps(capsys: pytest.CaptureFixture[str]) -> None:
    text = "".join(path.read_text() for path in PAGES)
    for name, verb in VERBS.items():
        module = verb.module.replace("pod_job.commands.", "pod_job.").replace("launch.verbs.", "launch ")
        assert re.search(rf"(pod-job {name}|python -m {module})\b", text), name
        with pytest.raises(SystemExit) as ended:
            parse([name, "--help"])
        shown = capsys.readouterr().out
        assert ended.value.code == 0
        assert f"examples:\n  pod-job {name}" in shown
        assert "exit status:" in shown


def test_examples_of_looking_at_a_run_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("first", "second", "mine"):
        text_run(open_folder(tmp_path / "runs" / name), tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    text = "\n".join(line for _, line in all_commands()) + "\npod-job diff runs/first runs/second\n"
    ran = 0
    for line in dict.fromkeys(
        re.findall(r"^(?:pod-job |python -m pod_job\.)((?:inspect|diff|verify) runs/.*)", text, re.MULTILINE)
    ):
        words = shlex.split(line)
        if not any(word.startswith("gs://") for word in words):
            assert main(words) == 0, capsys.readouterr().err
            ran += 1
    assert ran >= 2
    assert "\x1b" not in capsys.readouterr().out  # no colours where nobody sees them


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("pod-job wa", {"watch"}),
        ("pod-job export", {"export", "export-sae-lens"}),
        ("pod-job verify --rec", {"--recompute"}),
        ("pod-job verify runs/first model.pa", {"model.path="}),
        ("pod-job status --fol", {"--follow"}),
        ("python -m launch wa", {"watch"}),
        ("python -m launch plan experiment=dem", {"demo"}),
        ("python -m launch run mesh.da", {"mesh.data="}),
    ],
)
def test_tab_completes(typed: str, offered: set[str], tmp_path: Path, require: Callable[[bool, str], None]) -> None:
    require(importlib.util.find_spec("argcomplete") is not None, "argcomplete")
    asked = {
        "_ARGCOMPLETE": "3" if typed.startswith("python") else "1",  # index of the first word after the program
        "_ARGCOMPLETE_COMP_WORDBREAKS": " =",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "answers"),
        "COMP_LINE": typed,
        "COMP_POINT": str(len(typed)),
    }
    subprocess.run([sys.executable, "-m", "launch"], env=os.environ | asked, cwd=ROOT, check=True)
    answers = (tmp_path / "answers").read_text().split("\v")
    assert {answer.strip() for answer in answers} == offered
