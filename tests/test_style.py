"""The code and its prose keep to the style of the project, as far as a program can tell."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("pod_job", "launch")
SOURCES = [path for folder in (*PACKAGES, "tools", "tests") for path in sorted((ROOT / folder).rglob("*.py"))]
PROSE = [
    *SOURCES,
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "docs").rglob("*.py")),
    *sorted((ROOT / "conf").rglob("*.yaml")),
    ROOT / "Makefile",
]
EXPERIMENTS = sorted((ROOT / "conf/experiment").glob("*.yaml"))

UNWANTED_BEGINNING = re.compile(r"(Of|What|The same)\b")
UNWANTED_WORDS = re.compile(r"\b(anew|mend|mended)\b", re.IGNORECASE)
UNWANTED_NAMES = {"utils", "helpers", "common", "misc"}
MOST_PARAMETERS = 6
MOST_LINES = 60

# The number of exceptions that are left. Lower it when there are fewer; never raise it.
UNTYPED_RECORDS = 33

Function = ast.FunctionDef | ast.AsyncFunctionDef


def in_packages(path: Path) -> bool:
    return path.relative_to(ROOT).parts[0] in PACKAGES


@cache
def nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text())))


def lines(paths: list[Path]) -> Iterator[tuple[str, str]]:
    """Returns every line of the files with its place, without those of this file, which names the unwanted words."""
    for path in paths:
        if path != Path(__file__):
            for number, line in enumerate(path.read_text().splitlines(), 1):
                yield f"{path.relative_to(ROOT)}:{number}", line


def functions() -> Iterator[tuple[str, Function]]:
    """Returns every function of the packages with its place."""
    for path in filter(in_packages, SOURCES):
        for node in nodes(path):
            if isinstance(node, Function):
                yield f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", node


def parameters(function: Function) -> int:
    """Returns the number of parameters, without self and cls."""
    arguments = function.args
    names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def test_docstrings_begin_with_a_verb_or_a_noun() -> None:
    documented = ast.Module | ast.ClassDef | Function
    offending = [
        f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)} {text.splitlines()[0]}"
        for path in SOURCES
        for node in nodes(path)
        if isinstance(node, documented) and (text := ast.get_docstring(node)) and UNWANTED_BEGINNING.match(text)
    ]
    assert not offending, "\n".join(offending)


def test_text_has_no_words_of_its_own() -> None:
    offending = [f"{place} {line.strip()}" for place, line in lines(PROSE) if UNWANTED_WORDS.search(line)]
    assert not offending, "\n".join(offending)


def test_functions_have_few_parameters() -> None:
    offending = [place for place, function in functions() if parameters(function) > MOST_PARAMETERS]
    assert not offending, "\n".join(offending)


def test_functions_are_short() -> None:
    lengths = {place: (function.end_lineno or 0) - function.lineno + 1 for place, function in functions()}
    offending = [f"{place} has {length} lines" for place, length in lengths.items() if length > MOST_LINES]
    assert not offending, "\n".join(offending)


def test_files_are_named_for_their_content() -> None:
    assert [path for path in SOURCES if path.stem in UNWANTED_NAMES] == []


def test_records_are_typed() -> None:
    uses = [
        place for place, line in lines([*filter(in_packages, SOURCES)]) for _ in range(line.count("dict[str, Any]"))
    ]
    assert len(uses) <= UNTYPED_RECORDS, "\n".join(uses)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_an_experiment_says_in_one_sentence_what_it_is_for(path: Path) -> None:
    package, purpose = path.read_text().splitlines()[:2]
    assert package == "# @package _global_"
    assert re.fullmatch(r"# [A-Z][a-z]+s .*\.", purpose)
