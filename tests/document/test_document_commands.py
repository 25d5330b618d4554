"""The commands of the extraction document: their flags, their files, its loading snippet, and what they refuse."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch.local import coordinator_address
from pod_job.document import distributed_inference_with_activations as distributed
from pod_job.document import example_activation_extraction, simple_extraction_inference
from pod_job.document.flags import make_parser
from pod_job.document.pod_flags import mesh_shape
from pod_job.errors import JobError
from pod_job.reading.dataset import ActivationDataset
from pod_job.storage.open import open_folder
from tools.bucket import bucket_available, bucket_server
from tools.fakepod.metadata import MetadataServer
from tools.tiny_model import write_tiny_model

TASKS = "tests/data/arc/arc_sample.json"
TASK = {"train": [], "test": [{"input": [[1]]}]}


def command(name: str, *flags: object, devices: int = 1) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)}
    argv = [sys.executable, "-m", f"pod_job.document.{name}", *map(str, flags)]
    return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=280)


@pytest.mark.slow
@pytest.mark.pod
def test_the_workers_of_a_slice_know_it_and_work_together(tmp_path: Path) -> None:
    """Two workers with two devices each, which get no flag and no variable but the place of their metadata server."""
    model = write_tiny_model(tmp_path / "model", layers=2)
    flags = ["--model_path", model, "--tasks_file", TASKS, "--output_dir", tmp_path / "outputs", "--batch_size", 1]
    flags += ["--activations_dir", tmp_path / "activations", "--layers_to_extract", 0, 1, "--limit", 3]
    flags += ["--max_tokens", 0, "--seq_len", 64, "--too_long", "tail", "--positions", "all", "--mesh_shape", "4,1"]
    flags += ["--save_every_n_samples", 2]
    name = "pod_job.document.distributed_inference_with_activations"
    servers = [MetadataServer(["127.0.0.1"] * 2, worker) for worker in range(2)]
    simulated = {"JAX_NUM_CPU_DEVICES": "2", "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo"}
    simulated["JAX_COORDINATOR_PORT"] = coordinator_address(0).rpartition(":")[2]
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", name, *map(str, flags)],
            env=os.environ | simulated | {"GCE_METADATA_IP": server.address},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for server in servers
    ]
    said = [worker.communicate(timeout=280)[0] for worker in workers]
    for server in servers:
        server.close()
    assert [worker.returncode for worker in workers] == [0, 0], said
    assert any("activations  192 for each of layer_0, layer_1" in text for text in said), said
    metadata = json.loads((tmp_path / "activations/metadata.json").read_text())
    counts = [entry["n_samples"] for entry in metadata["batches"] if entry["layer"] == "layer_0"]
    assert sum(counts) == metadata["total_samples"] == len(ActivationDataset(tmp_path / "activations/run", layer=0))
    assert max(counts) == 2


@pytest.mark.slow
@pytest.mark.pod
def test_the_distributed_command_uploads_the_run_and_its_pickles(tmp_path: Path) -> None:
    if reason := bucket_available():
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    model = write_tiny_model(tmp_path / "model", layers=4)
    with bucket_server(tmp_path / "server", "your-bucket") as endpoint, pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", endpoint)
        flags = ["--model_path", model, "--tasks_file", TASKS, "--output_dir", tmp_path / "outputs", "--batch_size", 8]
        flags += ["--activations_dir", tmp_path / "activations", "--layers_to_extract", 1, 3, "--limit", 3]
        flags += ["--max_tokens", 0, "--seq_len", 512, "--too_long", "tail", "--gcs_bucket"]
        name, bucket = "distributed_inference_with_activations", "gs://your-bucket/activations"
        ran = command(name, *flags, "your-bucket/activations", "--upload_to_cloud")
        assert ran.returncode == 0, ran.stderr
        files = ["layer_1_batch_000001.pkl", "layer_3_batch_000001.pkl", "metadata.json"]
        uploaded = open_folder(bucket)
        assert [file for file in uploaded.names("") if "/" not in file] == files
        for file in files:
            assert uploaded.read(file) == (tmp_path / "activations" / file).read_bytes()
        assert len(ActivationDataset(f"{bucket}/run", layer=3)) == 3
        before = uploaded.names("")
        ran = command(name, *flags, "gs://your-bucket/other", "--upload_to_cloud", "False")
        assert ran.returncode == 0, ran.stderr
        assert not open_folder("gs://your-bucket/other").names("")
        assert uploaded.names("") == before


def test_the_flags_of_the_document_are_there_with_its_defaults() -> None:
    options = make_parser("simple", "").parse_args(["--model_path", "Qwen/Qwen2.5-0.5B", "--tasks_file", "t.json"])
    assert (options.output_dir, options.activations_dir) == ("./outputs", "./activations")
    assert options.layers_to_extract == [6, 12, 18, 23]
    assert (options.save_every_n_samples, options.batch_size, options.positions) == (512, 8, "last")


@pytest.mark.parametrize("text", ["8", "8,8,8", "a,b", "0,8", "8x8", "-1,8"])
def test_a_mesh_shape_that_is_not_two_numbers_is_refused(text: str) -> None:
    with pytest.raises(JobError, match="is not two whole numbers, DATA,MODEL; give for example 8,8"):
        mesh_shape([text])


@pytest.mark.parametrize("words", [["8,4"], ["8", "4"], ["8,", "4"], ["8, 4"]], ids=" ".join)
def test_a_mesh_shape_may_be_one_word_or_two(words: list[str]) -> None:
    assert mesh_shape(words) == (8, 4)


@pytest.mark.parametrize(
    "given", ["your-bucket/activations", "gs://your-bucket/activations/", " your-bucket/activations"]
)
def test_a_bucket_is_one_with_and_without_its_scheme(given: str) -> None:
    assert distributed.bucket_url(given) == "gs://your-bucket/activations"
    assert distributed.bucket_url("b_1.x") == "gs://b_1.x"


@pytest.mark.parametrize(
    "given", ["/data/run", "./run", "~/run", "s3://bucket/run", "gs:/bucket", "https://x/y", "", "Bucket/run", "a b/c"]
)
def test_what_is_no_bucket_is_refused(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert distributed.main(["--model_path", "m", "--tasks_file", "t", "--gcs_bucket", given]) == 2
    said = capsys.readouterr().err
    assert said == f"error: --gcs_bucket {given} names no bucket of Cloud Storage; give gs://bucket/prefix\n"


@pytest.mark.parametrize(
    ("words", "value"),
    [([], True), (["True"], True), (["true"], True), (["1"], True), (["False"], False), (["no"], False)],
)
def test_upload_to_cloud_takes_a_value_or_none(words: list[str], value: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    places: list[tuple[str, str | None]] = []
    monkeypatch.setattr(
        distributed, "run_here", lambda overrides, run_dir, options, also_in: places.append((run_dir, also_in))
    )
    flags = ["--model_path", "m", "--tasks_file", "t", "--gcs_bucket", "your-bucket/x", "--upload_to_cloud", *words]
    assert distributed.main([*flags, "--limit", "3"]) == 0
    assert places == [("gs://your-bucket/x/run", "gs://your-bucket/x") if value else ("activations/run", None)]


def test_without_credentials_the_bucket_flag_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("STORAGE_EMULATOR_HOST", "GOOGLE_APPLICATION_CREDENTIALS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    model = write_tiny_model(tmp_path / "model", layers=2)
    flags = ["--model_path", str(model), "--tasks_file", TASKS, "--layers_to_extract", "1"]
    assert distributed.main([*flags, "--gcs_bucket", "your-bucket/x"]) == 2
    said = capsys.readouterr().err
    assert "no usable Google credentials" in said
    assert said.endswith("(here storage.run_dir is --gcs_bucket)\n")
    assert said.count("\n") == 1


def test_flags_that_do_not_fit_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    needed = ["--model_path", "m", "--tasks_file", "t"]
    assert distributed.main([*needed, "--upload_to_cloud", "True"]) == 2
    assert "needs a bucket; give --gcs_bucket" in capsys.readouterr().err
    assert distributed.main([*needed, "--mesh_shape", "8,8", "--hosts", "3"]) == 2
    assert "--hosts 3 does not divide the 64 devices" in capsys.readouterr().err
    for command_main in (simple_extraction_inference.main, distributed.main, example_activation_extraction.main):
        for wrong, says in (
            (["--layer", "3"], "unrecognized arguments: --layer 3; "),
            (["--layers_to_extract"], "argument --layers_to_extract: expected at least one argument; "),
        ):
            with pytest.raises(SystemExit) as refused:
                command_main([*needed, *wrong])
            assert refused.value.code == 2
            said = capsys.readouterr().err
            assert says in said
            assert said.count("\n") == 1
    with pytest.raises(SystemExit):
        distributed.main([*needed, "--upload_to_cloud", "maybe"])
    assert "--upload_to_cloud: invalid boolean value: 'maybe'" in capsys.readouterr().err


def test_what_the_job_refuses_names_the_flags_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_tiny_model(tmp_path / "model", layers=4)
    tasks: dict[str, object] = {f"task_{number:05d}": TASK for number in range(10_000)}
    tasks["task_07777"] = {"train": [], "test": []}
    (tmp_path / "tasks.json").write_text(json.dumps(tasks))
    flags = ["--model_path", str(model), "--tasks_file", str(tmp_path / "tasks.json")]
    flags += ["--activations_dir", str(tmp_path / "activations")]
    for wrong, says in (
        (["--layers_to_extract", "9"], "layer 9 of a 4-layer model: use 0..3 (here extract.layers is --layers"),
        (["--layers_to_extract", "1", "--seq_len", "4000"], "generate.max_new_tokens is --max_tokens)"),
        (["--layers_to_extract", "1"], "task task_07777 has no test input; there is nothing to prompt for; fix it"),
    ):
        assert simple_extraction_inference.main([*flags, *wrong]) == 2
        said = capsys.readouterr().err
        assert says in said
        assert said.count("\n") == 1
    assert "tasks.on_broken is --on_broken" in said
