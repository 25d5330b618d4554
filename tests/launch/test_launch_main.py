"""The command line: help, errors in one line with status 2, and a dry run that only prints."""

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.__main__ import main
from launch.dispatch import command_of, parse
from launch.verb_table import GROUPS, VERBS
from tools.tiny_model import write_tiny_model

CLOUD = ["experiment=v5e64", "storage.run_dir=gs://bucket/run"]
DEMO = ["experiment=demo", "storage.run_dir=runs/never-made"]


def test_help_lists_every_verb_with_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert "examples:" in shown
    for name, verb in VERBS.items():
        assert f"  {name}" in shown
        assert verb.purpose in shown


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_is_found_by_the_name_its_help_shows(verb: str) -> None:
    assert command_of(verb).name == verb


def test_no_verb_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    shown = capsys.readouterr().out
    assert all(title in shown for title in GROUPS)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["paln", "experiment=demo"], "error: paln is not a verb of pod-job; did you mean plan?"),
        (
            ["experiment=demo", "plan"],
            "error: experiment=demo is not a verb of pod-job; write the verb first: plan, doctor, ",
        ),
        (
            ["run", "runs/first"],
            "error: runs/first is not key=value; a job starts from experiment=NAME storage.run_dir=runs/first",
        ),
        (
            ["watch", "gs://b/run"],
            "error: gs://b/run is not key=value; a job starts from experiment=NAME storage.run_dir=gs://b/run",
        ),
        (["status"], "error: RUN_DIR is missing; "),
        (["down", "runs/a", "runs/b"], "error: runs/a and runs/b are both run folders; give one"),
        (["plan", "experiment=dmeo"], "error: experiment=dmeo is not one of the choices: all-layers-v5e64, demo, "),
        (
            ["run", *DEMO, "pod.hots=3"],
            "error: pod.hots is not a field of the configuration; did you mean ",
        ),
        (["run", *DEMO, "mesh.data=3"], "error: mesh.data=3 x mesh.model=2 is 6 devices, but the pod has "),
        (["run", "experiment=v5e64"], "error: storage.run_dir is not set; "),
        (["up", *DEMO], "error: pod.kind=local has no pod in the cloud; "),
        (["up", *CLOUD], "error: cloud.zones is not set; "),
        (["up", *CLOUD, "cloud.zones=['us-west4-a; id']"], "error: cloud.zones: 'us-west4-a; id' is not allowed; "),
        (["up", *CLOUD, "cloud.name='$(id)'"], "error: cloud.name: '$(id)' is not allowed; "),
        (["logs", *DEMO], "error: storage.run_dir=runs/never-made: no host has logged anything there yet"),
        (["up", *CLOUD, "+cloud.labels.a='b c'"], "error: cloud.labels: 'b c' is not allowed; "),
    ],
)
def test_a_user_error_is_one_line(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(said)
    assert shown.err.count("\n") == 1


LAUNCHING = {
    "plan": {"--accept-identity", "--no-preflight", "--json"},
    "doctor": {"--measure-bucket", "--dry-run", "--json"},
    "up": {"--no-preflight", "--dry-run", "--json"},
    "run": {"--accept-identity", "--follow", "--no-preflight", "--dry-run", "--json"},
    "watch": {"--accept-identity", "--no-preflight", "--dry-run", "--json"},
    "status": {"--follow", "--json"},
    "logs": {"--follow", "--host", "--slice"},
    "stop": {"--dry-run", "--json"},
    "down": {"--dry-run", "--json"},
    "gc": {"--project", "--dry-run", "--json"},
}


def test_accepted_differences_reach_every_host(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fields = ["--accept-identity", "model.weights", "--accept-identity", "tokenizer_files"]
    model = write_tiny_model(tmp_path / "model", layers=4)
    job = [f"model.path={model}", "extract.layers=[1]", f"storage.run_dir={tmp_path}/run"]
    assert main(["run", "experiment=demo", *job, "--dry-run", *fields]) == 0
    commands = capsys.readouterr().out.splitlines()
    assert commands
    assert all("storage.accept_identity=[model.weights,tokenizer_files]" in command for command in commands)


@pytest.mark.parametrize("verb", LAUNCHING)
def test_help_of_a_verb_shows_its_options_and_no_others(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse([verb, "--help"])
    assert ended.value.code == 0
    options = re.findall(r"^  (?:-h, )?(--[a-z-]+)", capsys.readouterr().out, re.MULTILINE)
    assert set(options) == LAUNCHING[verb] | {"--help"}


@pytest.mark.parametrize("words", ["plan --follow", "stop --host 1", "verify runs/first --follow", "gc --no-preflight"])
def test_an_option_of_another_verb_is_refused(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words.split())
    assert ended.value.code == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: unrecognized arguments: --")
    assert shown.err.endswith(f"; see pod-job {words.split()[0]} --help\n")
    assert shown.err.count("\n") == 1


def test_options_may_stand_between_overrides() -> None:
    _, options = parse(["run", "--dry-run", "experiment=demo", "--json", "tasks.limit=3"])
    assert options.overrides == ["experiment=demo", "tasks.limit=3"]
    assert options.dry_run
    assert options.json


@pytest.mark.parametrize("words", [["--help"], ["plan", "--help"], ["verify", "--help"], ["no-such-verb"]])
def test_help_imports_only_the_verb_it_is_about(words: list[str]) -> None:
    program = """
import sys
from launch.__main__ import main
try:
    main(sys.argv[1:])
finally:
    print(*sys.modules, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True)
    loaded = {name for name in done.stderr.split() if name.startswith(("launch.verbs.", "pod_job.commands."))}
    shared = {"launch.verbs.arguments", "pod_job.commands.command_line", "pod_job.commands.completion"}
    mine = {VERBS[words[0]].module} if words[0] in VERBS else set()
    assert loaded - shared == mine
    assert "jax" not in done.stderr.split()


def test_dry_run_prints_one_command_per_host_and_starts_none(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("subprocess.Popen", None)
    model = write_tiny_model(tmp_path / "model", layers=4)
    job = ["experiment=demo", f"model.path={model}", "extract.layers=[1]", f"storage.run_dir={tmp_path / 'run'}"]
    assert main(["run", "--dry-run", *job]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    for host, line in enumerate(lines):
        assert line.startswith(f"POD_JOB_HOST={host} ")
        assert line.endswith(f"-m pod_job {shlex.join(job)}")
    assert not (tmp_path / "run").exists() or list((tmp_path / "run").iterdir()) == []
    for verb in ("run", "watch"):  # what a start would refuse is refused
        assert main([verb, "--dry-run", *job, "extract.layers=[4]"]) == 2
        assert "layer 4 of a 4-layer model" in capsys.readouterr().err


def test_a_bad_layer_fails_before_any_host_starts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("subprocess.Popen", None)
    model = write_tiny_model(tmp_path / "model", layers=4)
    job = [f"model.path={model}", "tasks=arc_sample", "extract.layers=[4]", f"storage.run_dir={tmp_path / 'run'}"]
    assert main(["run", *job]) == 2
    assert "layer 4 of a 4-layer model" in capsys.readouterr().err


def small_job(tmp_path: Path) -> list[str]:
    """A real job on two hosts of one device, of three batches."""
    model = write_tiny_model(tmp_path / "model", layers=4)
    tasks = Path("tests/data/arc/arc_sample.json").resolve()
    return [
        *("pod.hosts=2", "mesh.data=2", f"model.path={model}", "model.dtype=float32", "tasks=arc_sample"),
        *(f"tasks.path={tasks}", "tasks.limit=6", "extract.layers=[1,3]", "extract.save_every_n_samples=2"),
        *("extract.seq_len=128", "extract.too_long=tail", f"storage.run_dir={tmp_path / 'run'}", "--json"),
    ]


@pytest.mark.pod
def test_run_makes_a_dataset_and_run_again_finds_it_done(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    job = small_job(tmp_path)
    monkeypatch.chdir(tmp_path)  # where the logs go
    assert main(["run", *job]) == 0, capsys.readouterr().err
    first = json.loads(capsys.readouterr().out)
    assert first["complete"]
    assert first["prompts"] == first["attempt_prompts"] == 6
    assert first["rows_per_tap"] == {"layer_1": 6, "layer_3": 6}
    assert 0 <= first["padding"] < 1
    assert main(["run", *job]) == 0, capsys.readouterr().err
    second = json.loads(capsys.readouterr().out)
    assert second["attempt_prompts"] == 0
    assert second["rows_per_tap"] == first["rows_per_tap"]


def host_process(launcher: int, host: int, deadline: float) -> int:
    """The process of a host of a local pod, once it is there."""
    while time.monotonic() < deadline:
        for child in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
            with contextlib.suppress(OSError):
                if f"POD_JOB_HOST={host}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
                    return int(child)
        time.sleep(0.02)
    raise AssertionError(f"no host {host}")


@pytest.mark.slow
@pytest.mark.pod
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("failures", [1, 0])
def test_watch_on_this_machine_starts_a_lost_host_again_within_its_budget(tmp_path: Path, failures: int) -> None:
    command = [sys.executable, "-m", "launch", "watch", *small_job(tmp_path), f"cloud.failures={failures}"]
    pipe = subprocess.PIPE
    launcher = subprocess.Popen(
        command, cwd=tmp_path, stdout=pipe, stderr=pipe, text=True, env=os.environ | {"PYTHONPATH": str(Path.cwd())}
    )
    os.kill(host_process(launcher.pid, 1, time.monotonic() + 60), signal.SIGKILL)
    out, said = launcher.communicate(timeout=200)
    assert "error: host 1: ended by SIGKILL before it arrived" in said
    assert launcher.returncode == (0 if failures else 1), said
    assert ("starting again; 1 of 1 cloud.failures used" in said) == bool(failures)
    assert json.loads(out)["complete"] if failures else out == ""
