"""The commands of the extraction document: their flags, their files, its loading snippet, and what they refuse."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pod_job.commands import distributed_inference_with_activations as distributed
from pod_job.commands import example_activation_extraction, simple_extraction_inference
from pod_job.errors import JobError
from tools.demo import SNIPPET
from tools.tiny_model import write_tiny_model

TASKS = "tests/data/arc/arc_sample.json"


def command(name: str, *flags: object, devices: int = 1) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)}
    argv = [sys.executable, "-m", f"pod_job.commands.{name}", *map(str, flags)]
    return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=280)


@pytest.mark.slow
@pytest.mark.pod
def test_the_documents_snippet_loads_what_the_simple_command_writes(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model", layers=13)
    out, activations = tmp_path / "outputs", tmp_path / "activations"
    flags = ["--model_path", model, "--tasks_file", TASKS, "--output_dir", out, "--activations_dir", activations]
    flags += ["--layers_to_extract", 6, 12, "--limit", 5, "--max_tokens", 0, "--seq_len", 512]
    ran = command("simple_extraction_inference", *flags)
    assert ran.returncode == 0, ran.stderr
    shown = subprocess.run([sys.executable, "-I", "-c", SNIPPET], cwd=tmp_path, capture_output=True, text=True)
    assert shown.stdout == "Layer 12: (5, 64)\n"
    metadata = json.loads((activations / "metadata.json").read_text())
    assert (metadata["layers_extracted"], metadata["hidden_dim"], metadata["total_samples"]) == ([6, 12], 64, 5)
    assert {entry["file"] for entry in metadata["batches"]} == {f"layer_{n}_batch_000001.pkl" for n in (6, 12)}


@pytest.mark.slow
@pytest.mark.pod
def test_the_distributed_command_predicts_on_a_mesh(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model", layers=4)
    flags = ["--model_path", model, "--tasks_file", TASKS, "--output_dir", tmp_path / "outputs", "--batch_size", 2]
    flags += ["--activations_dir", tmp_path / "activations", "--layers_to_extract", 1, 3, "--limit", 3]
    ran = command(
        "distributed_inference_with_activations", *flags, "--max_tokens", 4, "--seq_len", 512, "--mesh_shape", "2,1",
        devices=2,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert len((tmp_path / "outputs/predictions.jsonl").read_text().splitlines()) == 3
    assert set(json.loads((tmp_path / "outputs/submission.json").read_text()))


@pytest.mark.parametrize("text", ["8", "8,8,8", "a,b", "0,8", "8x8", "-1,8"])
def test_a_mesh_shape_that_is_not_two_numbers_is_refused(text: str) -> None:
    with pytest.raises(JobError, match="is not two whole numbers, DATA,MODEL; give for example 8,8"):
        distributed.mesh_shape(text)
    assert distributed.mesh_shape("8,4") == (8, 4)


def test_flags_that_do_not_fit_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    needed = ["--model_path", "m", "--tasks_file", "t"]
    assert distributed.main([*needed, "--upload_to_cloud", "True"]) == 2
    assert "needs a bucket; give --gcs_bucket" in capsys.readouterr().err
    assert distributed.main([*needed, "--mesh_shape", "8,8", "--hosts", "3"]) == 2
    assert "--hosts 3 does not divide the 64 devices" in capsys.readouterr().err
    for command_main in (simple_extraction_inference.main, distributed.main, example_activation_extraction.main):
        with pytest.raises(SystemExit) as refused:
            command_main([*needed, "--layer", "3"])
        assert refused.value.code == 2
        assert "unrecognized arguments: --layer 3" in capsys.readouterr().err


def test_the_basic_example_needs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert example_activation_extraction.main([]) == 0
    shown = capsys.readouterr().out
    assert "layer_3: all positions (1, 10, 64), the last one for SAE training (1, 64)" in shown
