"""A unit of systemd runs `watch` with the very words of the job, and again after every end but a lasting one."""

import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from systemd_unit import Unit, read_unit

from launch import dispatch
from launch.__main__ import BUG, main
from pod_job.commands.command_line import BAD_INPUT, FAILED

JOB = ["experiment=v5e64", "storage.run_dir=gs://bucket/run", "cloud.zones=[us-west4-a,us-east5-b]"]
MANIFEST = ["manifest", "--for", "systemd", "--user", "anna"]
HOSTILE = [
    *("a b", "'c'", '"d"', "$(touch stolen)", "$HOME $$ $", "%h %% %n 100%", "a;b ; c", ";"),
    *("back\\slash\\\\ \\n", "# no comment", "-flag", "@plain", "ünïcödé ✓", "tab\tend", "two\nlines", "a=b c=d"),
]


def unit(capsys: pytest.CaptureFixture[str], *more: str) -> tuple[str, Unit]:
    assert main([*MANIFEST, *JOB, *more]) == 0
    text = capsys.readouterr().out
    return text, read_unit(text)


def test_the_unit_watches_the_job_as_a_user_of_the_vm(capsys: pytest.CaptureFixture[str]) -> None:
    text, watcher = unit(capsys)
    assert watcher.command == ["/home/anna/pod-job/.venv/bin/pod-job", "watch", "--no-preflight", *JOB]
    assert (watcher.only("User"), watcher.only("WorkingDirectory")) == ("anna", "/home/anna/pod-job")
    assert not watcher.settings["EnvironmentFile"]
    steps = [line for line in text.splitlines() if line.startswith("#")]
    assert steps[0].startswith("# sudo cp FILE /etc/systemd/system/extract-")
    _, with_secret = unit(capsys, "cloud.secrets=[HF_TOKEN]", "cloud.name=extract-1")
    assert with_secret.settings["EnvironmentFile"] == ["/etc/extract-1.env"]


@pytest.mark.parametrize("word", HOSTILE)
def test_words_arrive_as_they_were_given(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    quoted = word.replace("\\", "\\\\").replace("'", "\\'") if "\\" in word else word.replace("'", "\\'")
    override = f"model.revision='{quoted}'"
    _, watcher = unit(capsys, override)
    assert watcher.command[-1] == override


def test_a_control_character_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*MANIFEST, *JOB, "model.revision='\x07'"]) == BAD_INPUT
    assert "control character" in capsys.readouterr().err


def test_systemd_takes_the_unit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], require: Callable[[bool, str], None]
) -> None:
    require(shutil.which("systemd-analyze") is not None, "systemd-analyze")
    program = tmp_path / "a checkout" / ".venv" / "bin" / "pod-job"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    hostile = f"model.revision='{' '.join(HOSTILE[3:7])}'"
    assert main([*MANIFEST[:-1], "root", "--checkout", str(tmp_path / "a checkout"), *JOB, hostile]) == 0
    file = tmp_path / "extract-1.service"
    file.write_text(capsys.readouterr().out)
    done = subprocess.run(["systemd-analyze", "verify", str(file)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("status", "again"),
    [
        *((0, False), (FAILED, False), (BAD_INPUT, False)),
        *((-signal.SIGKILL, True), (-signal.SIGSEGV, True), (BUG, True), (128 + signal.SIGKILL, True)),
    ],
)
def test_an_end_that_the_next_start_would_meet_too_is_the_last(
    status: int, again: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    _, watcher = unit(capsys)
    assert watcher.starts_again(status) == again
    assert watcher.only("StartLimitIntervalSec") == "0"


def test_an_error_of_the_program_itself_has_a_status_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def crash(argv: list[str]) -> int:
        raise KeyError("no such thing")

    monkeypatch.setattr(dispatch, "dispatch", crash)
    monkeypatch.setattr("sys.argv", ["pod-job", "watch"])
    assert main() == BUG
    assert "KeyError: 'no such thing'" in capsys.readouterr().err
    assert BUG not in (FAILED, BAD_INPUT)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["model.path=/home/anna/model"], "is no folder of this machine"),
        ([f"tasks.path={Path(__file__).parent.parent}/data/arc"], "the VM that watches does not have it"),
        (["storage.run_dir=runs/here"], "which hosts do not see"),
        (["pod=local", "mesh=1x1"], "has no pod in the cloud"),
        (["--image", "x"], "--image: only for jobset"),
    ],
)
def test_what_a_vm_could_not_watch_is_refused(more: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*MANIFEST, *JOB, *more]) == BAD_INPUT
    assert said in capsys.readouterr().err
