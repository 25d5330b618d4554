"""The whole job in real processes: equal rows on any mesh and number of hosts, resumed after a kill, or refused."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from job_processes import finish, overrides, start

from pod_job import environment
from pod_job.reading.dataset import ActivationDataset
from pod_job.run_folder import layout
from pod_job.run_folder.layout import committed
from pod_job.storage.open import open_folder
from tools.tiny_model import write_tiny_model

pytestmark = pytest.mark.pod
SAMPLES = 44  # prompts of the sample tasks


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"), layers=4)


def extracted(run_dir: Path) -> dict[tuple[str, int, int, int], np.ndarray]:
    """Returns both taps' vectors by (task_id, sample_idx, position, token_id); fails if a row is stored twice."""
    vectors: dict[tuple[str, int, int, int], np.ndarray] = {}
    datasets = [ActivationDataset(str(run_dir), layer=layer) for layer in (1, 3)]
    rows = datasets[0].rows(slice(None))
    keys = list(zip(*(rows[name].tolist() for name in ("task_id", "sample_idx", "position", "token_id")), strict=True))
    assert len(set(keys)) == len(keys) == len(datasets[1])
    for i, key in enumerate(keys):
        vectors[key] = np.concatenate([dataset[i] for dataset in datasets])
    return vectors


@pytest.fixture(scope="module")
def finished(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on one host with one device, for tests to copy."""
    run_dir = tmp_path_factory.mktemp("finished")
    finish(start(overrides(model, run_dir), 1, 1))
    return run_dir


@pytest.fixture(scope="module")
def reference(finished: Path) -> dict[tuple[str, int, int, int], np.ndarray]:
    return extracted(finished)


SHAPES = [
    (1, 4, "2x2", "replicated"),
    (1, 8, "8x1", "tensor"),
    (2, 4, "4x2", "fsdp"),
    (4, 2, "4x2", "replicated"),
    (4, 1, "2x2", "tensor"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("hosts", "devices", "mesh", "sharding"), SHAPES)
def test_the_same_rows_on_any_mesh_and_number_of_hosts(
    reference: dict, model: Path, tmp_path: Path, hosts: int, devices: int, mesh: str, sharding: str
) -> None:
    finish(start(overrides(model, tmp_path, mesh=mesh, sharding=sharding), hosts, devices))
    vectors = extracted(tmp_path)
    assert vectors.keys() == reference.keys()
    for key, vector in vectors.items():
        np.testing.assert_allclose(vector, reference[key], rtol=1e-5, atol=1e-5)


def test_last_positions_are_the_last_of_all_positions(reference: dict, model: Path, tmp_path: Path) -> None:
    finish(start(overrides(model, tmp_path, **{"extract": "last_token", "extract.dtype": "bfloat16"}), 1, 1))
    last = {}
    for key in reference:
        last[key[:2]] = max(last.get(key[:2], key), key, key=lambda key: key[2])
    vectors = extracted(tmp_path)
    assert vectors.keys() == set(last.values())
    assert len(vectors) == SAMPLES
    for key, vector in vectors.items():
        np.testing.assert_allclose(vector.astype(np.float32), reference[key], rtol=1e-2, atol=1e-2)


@pytest.mark.slow
def test_a_killed_run_started_again_finishes_what_is_missing_and_nothing_else(
    reference: dict, finished: Path, model: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    arguments = overrides(model, tmp_path)
    folder = open_folder(str(tmp_path))
    # A run killed after two batches leaves their records, and files of a third batch without its record.
    (tmp_path / layout.METADATA).unlink()
    for batch in range(3, 7):
        (tmp_path / layout.commit_file(batch)).unlink()
        if batch > 3:
            (tmp_path / layout.activations_file("layer_3", batch)).unlink()
    files = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.glob("activations/*")}
    records = {batch: folder.read(layout.commit_file(batch)) for batch in committed(folder)}
    finish(start([*arguments, "mesh=2x2"], 2, 2))
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files} == files
    assert {batch: folder.read(layout.commit_file(batch)) for batch in records} == records
    assert json.loads(folder.read(layout.METADATA))["complete"] is True
    assert extracted(tmp_path).keys() == reference.keys()


def test_a_run_killed_anywhere_resumes(reference: dict, model: Path, tmp_path: Path) -> None:
    arguments = overrides(model, tmp_path, **{"extract.save_every_n_samples": 2})
    process = start(arguments, 1, 1)[0]
    while process.poll() is None and len(list(tmp_path.glob("commits/*.json"))) < 3:
        pass
    process.kill()
    process.communicate()
    assert not (tmp_path / layout.METADATA).exists()
    finish(start(arguments, 1, 1))
    assert extracted(tmp_path).keys() == reference.keys()


def test_a_finished_run_changes_no_more_and_refuses_another(finished: Path, model: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    kept = [*tmp_path.glob("activations/*"), *tmp_path.glob("commits/*")]
    before = {path: path.read_bytes() for path in kept if path != tmp_path / layout.METADATA}
    assert "0 of 6 batches to do" in finish(start(overrides(model, tmp_path), 1, 1))
    log = finish(start(overrides(model, tmp_path, **{"extract.seq_len": 640}), 1, 1), status=2)
    assert "belongs to another run" in log
    assert "seq_len" in log
    assert {path: path.read_bytes() for path in before} == before


def test_a_prompt_too_long_is_refused_by_name_or_cut_and_counted(model: Path, tmp_path: Path) -> None:
    log = finish(start(overrides(model, tmp_path / "a", **{"extract.seq_len": 128}), 1, 1), status=2)
    assert "tokens, more than extract.seq_len=128; raise it, or set extract.too_long=split" in log
    assert not list((tmp_path / "a").glob("activations/*"))
    cut = overrides(model, tmp_path / "b", **{"extract.seq_len": 128, "extract.too_long": "tail"})
    finish(start(cut, 1, 1))
    status = json.loads((tmp_path / "b" / layout.status_file(0)).read_text())
    assert 0 < status["cut_samples"] <= status["samples"] == SAMPLES
    counts = ActivationDataset(tmp_path / "b", layer=1).metadata.prompts
    assert counts is not None
    assert (counts.tokens - counts.dropped_tokens, counts.dropped_tokens) == (
        status["tokens"],
        status["dropped_tokens"],
    )
    assert 0 < status["step_s"] < status["seconds"]
    assert 0 <= status["waited_steps"] <= status["steps"]


def test_a_host_that_never_arrives_is_named(model: Path, tmp_path: Path) -> None:
    arguments = overrides(model, tmp_path, mesh="2x2", **{"pod.arrival_timeout_s": 3})
    log = finish(start(arguments, 4, 1, only=[0, 2]), status=2)
    assert "host 1, 3 of 4 did not arrive within pod.arrival_timeout_s=3" in log


def test_a_taken_port_is_refused_by_number(model: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        env = os.environ | environment.local_host(0, 1, f"127.0.0.1:{port}", "test")
        command = [sys.executable, "-m", "pod_job", *overrides(model, tmp_path)]
        process = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert process.returncode == 2
    assert f"pod.port={port} is taken" in process.stderr
