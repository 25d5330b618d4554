"""The documentation matches the code: the real parsers and both shells take its commands, links and paths lead
somewhere, and generated pages are current."""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from test_imports import LAYERS
from text_runs import text_run

from launch.__main__ import main
from launch.dispatch import command_of, parse
from launch.job_config import is_run_dir
from launch.verb_table import VERBS
from pod_job.config.load import conf_dir, load
from pod_job.errors import JobError
from pod_job.storage.open import open_folder
from tools import api_reference, config_reference, model_config_reference, verb_reference
from tools.bench.cases import CASES

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
OTHER_PROGRAMS = {"gcloud", "activate-global-python-argcomplete", "pip", "docker", "uv", "pre-commit", "source", "git"}
"""Programs whose parsers are not here."""


def commands(text: str) -> Iterator[str]:
    """Returns command lines of fenced blocks: plain and sh lines that begin with a program, console lines with `$`."""
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if language == "console" and line.startswith("$ "):
                yield line[2:]
            elif language in ("", "sh", "bash") and re.match(
                rf"(pod-job|python|make|{'|'.join(OTHER_PROGRAMS)}) ", line
            ):
                yield line


def all_commands() -> list[tuple[str, str]]:
    return [(path.name, line) for path in PAGES for line in dict.fromkeys(commands(path.read_text()))]


@pytest.mark.parametrize(("name", "line"), all_commands())
def test_a_command_is_accepted(name: str, line: str) -> None:
    words = shlex.split(line)
    words = words[: words.index("...")] if "..." in words else words
    match words:
        case ["pod-job", *rest] | ["python", "-m", "launch", *rest]:
            _, options = parse(rest)
            check_overrides([word for word in getattr(options, "overrides", []) if not is_run_dir(word)])
        case ["python", "-m", module, *_]:
            assert importlib.util.find_spec(module) is not None
        case ["python", script, *_]:
            assert any((folder / script).is_file() for folder in (ROOT, ROOT / "docs/document"))
        case ["make", target, *settings]:
            check_target(target, settings)
        case [program, *_]:
            assert program in OTHER_PROGRAMS
    for extras in re.findall(r"\.\[([\w,]+)\]", line):
        known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert set(extras.split(",")) <= known.keys()


def check_overrides(overrides: list[str]) -> None:
    """Composes the configuration. A page may leave a field to the reader, such as the run folder; none may be wrong."""
    try:
        load(overrides)
    except JobError as error:
        if "is not set" not in str(error):
            raise


def check_target(target: str, settings: list[str]) -> None:
    rules = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    experiments = {path.stem for path in (conf_dir() / "experiment").glob("*.yaml")}
    kind, _, experiment = target.partition("-")
    if target not in rules:
        assert kind in ("run", "plan", "watch", "sim")
        assert experiment in experiments
        args = [word for setting in settings if setting.startswith("ARGS=") for word in shlex.split(setting[5:])]
        check_overrides([f"experiment={experiment}", *args])


def help_examples() -> list[tuple[str, str]]:
    return [(verb, f"pod-job {verb} {example}") for verb in VERBS for example in command_of(verb).examples]


@pytest.mark.parametrize("shell", ["bash", "zsh"])
@pytest.mark.parametrize(("name", "line"), [*all_commands(), *help_examples()])
def test_a_shell_passes_the_words_of_a_command_unchanged(
    name: str, line: str, shell: str, require: Callable[[bool, str], None]
) -> None:
    require(shutil.which(shell) is not None, shell)
    unquoted = re.sub(r"'[^']*'|\"[^\"]*\"", "", line)
    assert not re.search(r"[][*?{}~$`#;|<>\\]", unquoted.replace("\\ ", " "))
    for command in line.split(" && "):
        printed = subprocess.run([shell, "-c", f"printf '%s\\n' {command}"], capture_output=True, text=True, cwd="/")
        assert printed.returncode == 0, printed.stderr
        assert printed.stdout == "".join(f"{word}\n" for word in shlex.split(command))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_inline_commands_and_paths_exist(path: Path) -> None:
    prose = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    inline = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose)]
    verbs = {code.split()[1] for code in inline if code.startswith("pod-job ")}
    assert {verb for verb in verbs if verb.isidentifier() and verb.islower()} <= VERBS.keys()
    benchmarks = [re.split(r"tools\.bench |make bench ARGS=", code)[1:] for code in inline]
    cases = [case for arguments in benchmarks for text in arguments for case in text.strip('"').split(" --")[0].split()]
    assert [case for case in cases if case != "CASE" and not any(c.name.startswith(case) for c in CASES)] == []
    paths = [code for code in inline if re.fullmatch(r"(pod_job|launch|tools|tests|conf|docs)/[a-z\w/.-]*", code)]
    assert [name for name in paths if not (ROOT / name).exists() and "FOLDER" not in name] == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_python_blocks_import_what_exists(path: Path) -> None:
    for block in re.findall(r"^```python\n(.*?)^```$", path.read_text(), re.MULTILINE | re.DOTALL):
        exec("\n".join(re.findall(r"^(?:from|import) .*$", block, re.MULTILINE)), {})


def test_the_readme_lists_the_folders_in_the_order_of_their_layers() -> None:
    readme = (ROOT / "README.md").read_text()
    for package, layers in LAYERS.items():
        (tree,) = re.findall(rf"^{package}/ .*\n((?:  .*\n)+)", readme, re.MULTILINE)
        listed = re.findall(r"^  ([\w.]+?)/? +\w", tree, re.MULTILINE)
        order = [name if (ROOT / package / name).is_dir() else f"{name}.py" for name in layers]
        assert [name for name in order if name in listed or "." not in name] == listed


def test_generated_pages_are_current() -> None:
    assert (ROOT / "docs/configuration.md").read_text() == config_reference.page(), "stale: run `make docs`"
    assert (ROOT / "docs/model-configs.md").read_text() == model_config_reference.page(), "stale: run `make docs`"
    assert (ROOT / "docs/api.md").read_text() == api_reference.page(), "stale: run `make docs`"
    page = (ROOT / "docs/commands.md").read_text()
    assert verb_reference.rewritten(page) == page, "stale: run `make docs`"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", path.read_text()):
        page = path.parent / target if target else path
        assert page.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", ["troubleshooting.md", "launching.md"])
def test_messages_that_are_explained_exist(page: str) -> None:
    files = [path for package in LAYERS for kind in ("*.py", "*.sh") for path in sorted((ROOT / package).rglob(kind))]
    sources = "".join(path.read_text() for path in files)
    strings = re.sub(r'"\s*f?"', "", sources)
    (table,) = re.findall(r"^\| message .*\n\|.*\n((?:\|.*\n)+)", (ROOT / "docs" / page).read_text(), re.MULTILINE)
    for message in re.findall(r"^\| [^|]*?`(.+?)`", table, re.MULTILINE):
        parts = re.split(r"[\w/]+\.json|\d+|/[\w/]+|\(?\.\.\.\)?", message)
        assert max(map(len, parts)) >= 5
        assert [part for part in parts if part.strip(" ;:").lower() not in strings.lower()] == [], message


def test_every_page_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    assert [path.name for path in PAGES[1:] if f"({path.relative_to(ROOT).as_posix()})" not in readme] == []


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_examples(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse([verb, "--help"])
    shown = capsys.readouterr().out
    assert ended.value.code == 0
    assert f"examples:\n  pod-job {verb}" in shown
    assert "exit status:" in shown


def test_examples_of_looking_at_a_run_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("first", "second", "mine", "demo"):
        text_run(open_folder(tmp_path / "runs" / name), tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    text = "\n".join(line for _, line in all_commands()) + "\npod-job diff runs/first runs/second\n"
    ran = 0
    for line in dict.fromkeys(re.findall(r"^pod-job (?:inspect|diff|verify) runs/.*", text, re.MULTILINE)):
        words = shlex.split(line)
        if not any(word.startswith("gs://") for word in words):
            assert main(words[1:]) == 0, capsys.readouterr().err
            ran += 1
    assert ran >= 2
    assert "\x1b" not in capsys.readouterr().out  # no colors in a pipe


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
    request = {
        "_ARGCOMPLETE": "3" if typed.startswith("python") else "1",  # index of the first word after the program
        "_ARGCOMPLETE_COMP_WORDBREAKS": " =",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "answers"),
        "COMP_LINE": typed,
        "COMP_POINT": str(len(typed)),
    }
    subprocess.run([sys.executable, "-m", "launch"], env=os.environ | request, cwd=ROOT, check=True)
    answers = (tmp_path / "answers").read_text().split("\v")
    assert {answer.strip() for answer in answers} == offered
