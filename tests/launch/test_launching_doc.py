"""docs/launching.md cannot rot: its commands are accepted, dry runs print what it shows, its verbs are all there."""

import re
import shlex
from pathlib import Path

import pytest

from launch.__main__ import main
from launch.dispatch import parse
from launch.verb_table import VERBS
from pod_job.config.load import load

TEXT = Path("docs/launching.md").read_text()
SHOWN = re.findall(r"^\$ (?:pod-job|python -m launch) (.+)\n((?:(?!\$ |```).*\n)*)", TEXT, re.MULTILINE)


@pytest.mark.parametrize("line", [line for line, _ in SHOWN])
def test_a_shown_command_is_accepted(line: str) -> None:
    _, options = parse(shlex.split(line))
    load([argument for argument in options.overrides if "=" in argument])


def test_dry_runs_print_what_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    dry = [(shlex.split(line), output) for line, output in SHOWN if "--dry-run" in line]
    assert dry
    for arguments, output in dry:
        assert main(arguments) == 0
        assert capsys.readouterr().out.strip() == output.strip()


def test_every_verb_is_explained() -> None:
    verbs = [name for name, verb in VERBS.items() if verb.module.startswith("launch.") and name != "plan"]
    assert [name for name in verbs if not re.search(rf"`{name}`|(launch|pod-job) {name}\b", TEXT)] == []


def test_overrides_of_make_targets_exist() -> None:
    (arguments,) = re.findall(r'^make watch-(\w+) ARGS="(.+)"$', TEXT, re.MULTILINE)
    load([f"experiment={arguments[0]}", *shlex.split(arguments[1])])


def test_fields_that_are_named_exist() -> None:
    config = load(["experiment=rehearsal"])
    for section, field in re.findall(r"\b(cloud|pod|storage)\.([a-z_]+)\b(?!\()", TEXT):
        if (section, field) not in {("cloud", "google")}:
            assert hasattr(getattr(config, section), field), f"{section}.{field}"
