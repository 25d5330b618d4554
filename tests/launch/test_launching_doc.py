"""docs/launching.md matches the launcher: its dry runs print the output it shows, and it explains every verb."""

import re
import shlex
from pathlib import Path

import pytest

from launch.__main__ import main
from launch.dispatch import parse
from launch.job_config import is_run_dir
from launch.verb_table import VERBS
from pod_job.config.load import load

TEXT = Path("docs/launching.md").read_text()
SHOWN = re.findall(r"^\$ pod-job (.+)\n((?:(?!\$ |```).*\n)*)", TEXT, re.MULTILINE)


@pytest.mark.parametrize("line", [line for line, _ in SHOWN])
def test_a_shown_command_is_accepted(line: str) -> None:
    _, options = parse(shlex.split(line))
    if not any(is_run_dir(word) for word in options.overrides):
        load(options.overrides)


def test_dry_runs_print_what_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    dry_runs = [(shlex.split(line), output) for line, output in SHOWN if "--dry-run" in line]
    assert dry_runs
    for arguments, output in dry_runs:
        assert main(arguments) == 0
        assert capsys.readouterr().out.strip() == output.strip()


def test_every_verb_is_explained() -> None:
    verbs = [name for name, verb in VERBS.items() if verb.module.startswith("launch.") and name != "plan"]
    assert [name for name in verbs if not re.search(rf"`{name}`|pod-job {name}\b", TEXT)] == []


def test_overrides_of_make_targets_exist() -> None:
    (arguments,) = re.findall(r'^make watch-([\w-]+) ARGS="(.+)"$', TEXT, re.MULTILINE)
    load([f"experiment={arguments[0]}", *shlex.split(arguments[1])])


def test_fields_that_are_named_exist() -> None:
    config = load(["experiment=rehearsal"])
    for section, field in re.findall(r"\b(cloud|pod|storage)\.([a-z_]+)\b(?!\()", TEXT):
        if (section, field) not in {("cloud", "google"), ("storage", "buckets")}:
            assert hasattr(getattr(config, section), field), f"{section}.{field}"
