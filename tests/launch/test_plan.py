"""The commands of the hosts are pinned to the letter, and a plan tells the same story as table and as JSON."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from launch.__main__ import main
from launch.host_commands import HostCommand, host_commands, new_attempt
from pod_job.config.load import load
from tools.tiny_model import write_tiny_model

SMALL_POD = ["pod.hosts=2", "pod.devices_per_host=2", "mesh=2x2"]


@pytest.fixture
def job(tmp_path: Path) -> list[str]:
    """Overrides of a small job that is really there: a tiny model, the sample tasks, a run folder."""
    model = write_tiny_model(tmp_path / "tiny model", layers=4)
    return [
        *SMALL_POD,
        f"model.path='{model}'",
        "tasks=arc_sample",
        "tasks.limit=10",
        "extract.layers=[1,3]",
        "extract.save_every_n_samples=4",
        "extract.too_long=tail",
        f"storage.run_dir='{tmp_path / 'run'}'",
    ]


def test_commands_of_a_local_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/opt/venv/bin/python")
    overrides = ["experiment=demo", "pod.hosts=2", "mesh=2x2", "storage.run_dir='runs/a b; $(id)'"]
    commands = host_commands(load(overrides), overrides, "127.0.0.1:4711", "20250101T000000Z-abcdef")
    assert [str(command) for command in commands] == [
        "POD_JOB_HOST=0 POD_JOB_COORDINATOR=127.0.0.1:4711 POD_JOB_ATTEMPT=20250101T000000Z-abcdef "
        "JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=2 JAX_CPU_COLLECTIVES_IMPLEMENTATION=gloo OPENBLAS_NUM_THREADS=1 "
        "/opt/venv/bin/python -m pod_job experiment=demo pod.hosts=2 mesh=2x2 "
        "'storage.run_dir='\"'\"'runs/a b; $(id)'\"'\"''",
        "POD_JOB_HOST=1 POD_JOB_COORDINATOR=127.0.0.1:4711 POD_JOB_ATTEMPT=20250101T000000Z-abcdef "
        "JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=2 JAX_CPU_COLLECTIVES_IMPLEMENTATION=gloo OPENBLAS_NUM_THREADS=1 "
        "/opt/venv/bin/python -m pod_job experiment=demo pod.hosts=2 mesh=2x2 "
        "'storage.run_dir='\"'\"'runs/a b; $(id)'\"'\"''",
    ]
    assert commands[0].argv == ["/opt/venv/bin/python", "-m", "pod_job", *overrides]


def test_commands_of_a_tpu_pod() -> None:
    overrides = ["experiment=v5e64", "storage.run_dir=gs://bucket/run"]
    commands = host_commands(load(overrides), overrides, "", "20250101T000000Z-abcdef")
    assert [str(command) for command in commands] == [
        "POD_JOB_ATTEMPT=20250101T000000Z-abcdef POD_JOB_RUN=gs://bucket/run python3 -m pod_job experiment=v5e64 "
        "storage.run_dir=gs://bucket/run"
    ] * 16


def test_a_printed_command_is_one_a_shell_reads_back() -> None:
    command = HostCommand(["echo", "a b", "$(id)", "it's", "two\nlines"], {"NAME": "x; y"})
    shown = subprocess.run(["sh", "-c", f"{command}; :"], capture_output=True, text=True, check=True)
    assert shown.stdout == "a b $(id) it's two\nlines\n"
    assert shlex.split(str(command))[0] == "NAME=x; y"


def test_attempts_differ() -> None:
    assert len({new_attempt() for _ in range(100)}) == 100


def test_plan_as_json(job: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *job, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["hosts"], plan["devices_per_host"], plan["devices"]) == (2, 2, 4)
    assert plan["mesh"] == {"data": 2, "model": 2}
    assert (plan["family"], plan["layers"], plan["hidden"]) == ("qwen2", 4, 64)
    assert plan["samples"] == 10
    assert plan["batches"] == 3  # of 4, 4 and 2 samples
    assert (plan["samples_error"], plan["tokens_error"]) == (0, 0)  # all of them were looked at
    assert plan["tokens"] == plan["prompts"]["tokens"]
    assert plan["taps"] == ["layer_1", "layer_3"]
    assert [command["env"]["POD_JOB_HOST"] for command in plan["commands"]] == ["0", "1"]
    assert all(command["argv"] == [sys.executable, "-m", "pod_job", *job] for command in plan["commands"])
    assert "Hugging Face's model in torch" in plan["reference"] or "torch is not installed" in plan["reference"]
    coordinators = {command["env"]["POD_JOB_COORDINATOR"] for command in plan["commands"]}
    assert len(coordinators) == 1


def test_a_plan_needs_no_weights_and_a_start_does(
    job: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A plan from config.json alone equals the plan with weights, and says so; `run` refuses the folder."""
    assert main(["plan", *job, "--json"]) == 0
    whole = json.loads(capsys.readouterr().out)
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(tmp_path / "tiny model" / "config.json", alone)
    of_it = [*job, f"model.path='{alone}'"]
    assert main(["plan", *of_it, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (whole.pop("weights_found"), plan.pop("weights_found")) == (True, False)
    differing = {name for name in whole if plan[name] != whole[name]}
    assert differing == {"model", "commands", "prompts", "tokens", "reference"}  # only the whole model has a tokenizer
    assert main(["plan", *of_it]) == 0
    assert "none at model.path" in " ".join(capsys.readouterr().out.split())
    assert main(["run", *of_it]) == 2
    assert "has neither model.safetensors" in capsys.readouterr().err


def test_a_plan_tells_what_the_prompts_are(job: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """On a model without weights too, where its tokenizer is there."""
    assert main(["plan", *job, "--json"]) == 0
    whole = json.loads(capsys.readouterr().out)["prompts"]
    assert whole["prompts"] == 10
    (Path(shlex.split(job[3].removeprefix("model.path="))[0]) / "model.safetensors").unlink()
    assert (
        main(
            [
                "plan",
                *job,
                "tasks.on_broken=skip",
                "extract.too_long=refuse",
                f"extract.seq_len={whole['longest'] - 1}",
                "--json",
            ]
        )
        == 0
    )
    cut = json.loads(capsys.readouterr().out)
    assert (cut["weights_found"], cut["prompts"]["skipped"]) == (False, {"too_long": 10 - cut["prompts"]["prompts"]})
    assert 0 < cut["prompts"]["longest"] < whole["longest"]


@pytest.mark.parametrize("verb", ["plan", "run"])
def test_what_a_host_would_refuse_of_a_prompt_is_refused_here(
    verb: str, job: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text('{"text": "good"}\n' * 998 + json.dumps({"text": "x" * 65, "task_id": "long"}) + "\n")
    changes = ["tasks.format=jsonl", f"tasks.path='{tasks}'", "tasks.limit=null", "extract.too_long=refuse"]
    assert main([verb, *job, *changes, "extract.seq_len=64"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: task long, sample 0 has 65 tokens, more than extract.seq_len=64")
    assert not (tmp_path / "run" / "run.json").exists()


def test_plan_as_a_table(job: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *job]) == 0
    shown = capsys.readouterr().out
    for said in (
        "2 hosts x 2 devices = 4",
        "data 2 x model 2",
        "10 samples, the most that tasks.limit allows, in 3 batches",
        "layer_1, layer_3",
    ):
        assert said in shown
    assert "-m pod_job" in shown


def test_a_plan_is_of_all_slices(job: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    of_slices = [*job, "pod.slices=2", "extract.save_every_n_samples=1"]
    assert main(["plan", *of_slices, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["slices"], plan["hosts"], plan["idle"]) == (2, 2, None)
    assert [command["argv"][-1] for command in plan["commands"]] == [f"pod.slice='{i}'" for i in (0, 0, 1, 1)]
    assert main(["plan", *of_slices, "extract.save_every_n_samples=4"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "pod 2 slices, each local: 2 hosts x 2 devices = 4" in shown
    assert "idle 1 of 4 hosts that feed the devices have no batch" in shown  # of three batches
    assert "the same with its own POD_JOB_HOST, and that of its slice in pod.slice" in shown
    assert main(["plan", *of_slices, "pod.slice='1'", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["slices"] == 1


def test_plan_starts_and_writes_nothing(job: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("subprocess.Popen", None)
    assert main(["plan", *job]) == 0
    left = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert left == []
