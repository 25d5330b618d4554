"""A machine that is not fit for the run is told before a weight is loaded, in one line with what to do."""

import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pod_job.checkpoints.huggingface import TensorFiles
from pod_job.config.load import load
from pod_job.config.schema import JobConfig
from pod_job.errors import JobError
from pod_job.planning import host_checks
from pod_job.planning.host_checks import (
    MachineNeeds,
    check_clock,
    check_disk,
    check_machine,
    check_memory,
    clock_skew_s,
    machine_needs,
)
from pod_job.planning.inputs import Inputs, read_inputs
from tools.bucket import bucket_available, bucket_server
from tools.fakepod.metadata import MetadataServer
from tools.tiny_model import write_tiny_model


@pytest.fixture
def metadata(monkeypatch: pytest.MonkeyPatch) -> Iterator[MetadataServer]:
    server = MetadataServer(["127.0.0.1"], 0)
    monkeypatch.setenv("GCE_METADATA_IP", server.address)
    yield server
    server.close()


@pytest.mark.parametrize("ahead_s", [0.0, 95.0, -3600.0])
def test_the_clock_is_compared_with_the_metadata_server(metadata: MetadataServer, ahead_s: float) -> None:
    metadata.ahead_s = ahead_s
    url = host_checks.clock_of(load(["experiment=v5e64", "storage.run_dir=gs://bucket/run"]))
    assert url == f"http://{metadata.address}/"
    skew_s = clock_skew_s(url)
    assert skew_s == pytest.approx(-ahead_s, abs=2)


def test_a_clock_that_is_off_is_refused_with_the_fix() -> None:
    check_clock(None, "x")
    check_clock(59.0, "x")
    with pytest.raises(JobError, match=r"^this host's clock is 95 s behind http://x; set it: sudo systemctl"):
        check_clock(-95.0, "http://x")
    with pytest.raises(JobError, match="95 s ahead of http://x"):
        check_clock(95.0, "http://x")


def test_the_bucket_has_the_time_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, require) -> None:
    require(bucket_available() is None, str(bucket_available()))
    with bucket_server(tmp_path / "buckets", "clock") as url:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
        found = host_checks.clock_of(load(["experiment=demo", "storage.run_dir=gs://clock/run"]))
        assert found == url
        assert clock_skew_s(url) == pytest.approx(0, abs=2)


def test_no_answer_is_no_refusal() -> None:
    assert clock_skew_s("http://127.0.0.1:1/") is None
    assert host_checks.clock_of(load(["experiment=demo"])) is None


@pytest.fixture
def job(tmp_path: Path) -> tuple[JobConfig, Inputs, list[int]]:
    """Ten prompts, two taps of width 64, on a local pod of 4 devices; and what its batches hold in tokens."""
    model = write_tiny_model(tmp_path / "model", layers=4)
    config = load(
        [
            *("pod.hosts=2", "pod.devices_per_host=2", "mesh=2x2", f"model.path={model}", "model.dtype=float32"),
            *("tasks=arc_sample", "tasks.limit=10", "extract=all_tokens", "extract.layers=[1,3]"),
            *("extract.dtype=float32", "extract.save_every_n_samples=5", f"storage.run_dir={tmp_path / 'run'}"),
        ]
    )
    inputs = read_inputs(config)
    return config, inputs, [1000, 3000]


def test_needs_are_what_the_run_writes_and_holds(job: tuple[JobConfig, Inputs, list[int]], tmp_path: Path) -> None:
    config, inputs, tokens = job
    row_bytes = 2 * 64 * 4
    needs = machine_needs(inputs, tokens)
    assert needs.disk[tmp_path / "run"] == 4000 * row_bytes
    assert isinstance(inputs.checkpoint, TensorFiles)
    read = {
        name: tensor for name, tensor in inputs.checkpoint.tensors.items() if name != "lm_head.weight"
    }  # prefill: no logits
    parameters = sum(math.prod(tensor.shape) for tensor in read.values())
    assert needs.weights == pytest.approx(4 * parameters * 4, rel=0.01)  # a copy on each of 4 devices
    assert needs.batches == 2 * 3000 * row_bytes * (config.storage.writers + 2)
    # One host's share tells of all: here it is half of the batches.
    assert machine_needs(inputs, tokens[:1]).disk[tmp_path / "run"] == 2000 * row_bytes
    last = load(
        ["experiment=demo", "extract=last_token", "extract.save_every_n_samples=5", f"storage.run_dir={tmp_path}"]
    )
    assert machine_needs(replace(inputs, config=last), tokens).disk[tmp_path / "run"] == 10 * 2 * 64 * 2


def test_what_does_not_fit_is_refused(
    job: tuple[JobConfig, Inputs, list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, inputs, tokens = job
    check_machine(inputs, tokens)
    with pytest.raises(JobError, match=rf"^{tmp_path / 'run'} has [\d,.]+ \w+ of free disk, the run writes "):
        check_machine(inputs, [shutil.disk_usage(tmp_path).free // 500, 1])
    monkeypatch.setattr(host_checks, "available_memory", lambda: 1 << 20)
    with pytest.raises(JobError, match=r"^this machine has 1\.05 MB of free memory, .*lower extract\.save_"):
        check_machine(inputs, tokens)


def test_free_memory_and_disk_are_read_from_the_system(tmp_path: Path) -> None:
    assert host_checks.free_bytes(tmp_path / "not" / "yet") == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.2)
    memory = host_checks.available_memory()
    assert memory is None or memory > 1 << 26
    needs = MachineNeeds({}, weights=10, batches=10)
    check_memory(needs, None)
    check_memory(needs, 20)
    with pytest.raises(JobError):
        check_memory(replace(needs, batches=11), 20)
    check_disk(tmp_path, 5, 5)


def test_a_finished_run_needs_no_more_disk(job: tuple[JobConfig, Inputs, list[int]], tmp_path: Path) -> None:
    _, inputs, tokens = job
    for batch in (1, 2):
        inputs.folder.create(f"commits/batch_{batch:06d}.json", [b"{}"])
    assert machine_needs(inputs, tokens).disk[tmp_path / "run"] == 0
