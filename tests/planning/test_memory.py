"""Memory of a run: shown in the plan, and with the settings that lower it where a job runs out of memory."""

from pathlib import Path
from typing import Any

import pytest
from job_processes import finish, start
from safetensors.numpy import load_file

from pod_job.config.load import load
from pod_job.errors import JobError
from pod_job.planning.inputs import read_inputs
from pod_job.planning.memory import described, explaining_memory, run_memory
from tools.tiny_model import write_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"), layers=4)


def overrides(model: Path, run_dir: Path, **changes: Any) -> list[str]:
    values = {
        "model.path": model,
        "model.dtype": "float32",
        "tasks": "arc_sample",
        "tasks.limit": 4,
        "extract.layers": [1, 3],
        "extract.dtype": "float32",
        "extract.seq_len": 64,
        "extract.too_long": "tail",
        "extract.save_every_n_samples": 8,
        "parity.samples": 0,
        "storage.run_dir": run_dir,
    }
    return [f"{key}={value}" for key, value in (values | changes).items()]


def test_what_is_held_follows_from_the_configuration(model: Path, tmp_path: Path) -> None:
    def of(**changes: Any) -> Any:
        return run_memory(read_inputs(load(overrides(model, tmp_path / "run", **changes))))

    vector = 2 * 64 * 4  # two taps of width 64 in float32
    last, every = of(), of(**{"extract.positions": "all", "extract.rows_per_device": 3})
    tensors = load_file(model / "model.safetensors")
    # Prefill needs no logits.
    weights = sum(tensor.size for name, tensor in tensors.items() if name != "lm_head.weight")
    assert last.weights == every.weights == 4 * weights
    assert (last.cache, every.cache) == (0, 0)
    assert last.vectors == 2 * 64 * vector  # at most 64 prompts in a row, two steps
    assert every.vectors == 2 * 3 * 64 * vector
    writers_and_two = 4 + 2
    assert last.batches == 8 * vector * writers_and_two
    assert every.batches == 8 * 64 * vector * writers_and_two
    generation = {"mode": "generate", "generate.max_new_tokens": 20, "extract.rows_per_device": 3}
    generated = of(**generation)
    reading = 3  # rows of prefill, beside those of the cache
    row = (64 + 32) * 4 * 2 * 2 * 16 * 4  # slots, layers, keys and values, heads, head size, float32
    assert generated.cache == (3 + reading) * row
    assert generated.vectors == 2 * (reading + 3 * 16) * vector  # one prompt in a row of prefill
    assert generated.batches == 8 * 20 * vector * writers_and_two
    tensor = of(**generation, **{"pod.devices_per_host": 2, "mesh.model": 2, "sharding": "tensor"})
    assert tensor.cache == generated.cache // 2
    assert tensor.weights < generated.weights * 0.6
    assert "keys and values" in described(generated)
    assert "keys and values" not in described(last)


def test_a_device_that_is_full_is_told_with_what_is_held_and_what_to_lower(model: Path, tmp_path: Path) -> None:
    # Terabytes of cache, which no machine gives out.
    greedy = {"mode": "generate", "generate.max_new_tokens": 4000, "extract.rows_per_device": 1 << 18}
    said = finish(start(overrides(model, tmp_path, **greedy, **{"extract.seq_len": 8}), 1, 1), status=2)
    assert "a device is out of memory (Out of memory allocating" in said
    assert "GB keys and values" in said
    assert "lower extract.rows_per_device=262144, on a host lower extract.save_every_n_samples=8; " in said
    assert "extract fewer layers (extract.layers)" in said


def test_a_full_host_is_told_too_and_other_errors_pass(model: Path, tmp_path: Path) -> None:
    inputs = read_inputs(load(overrides(model, tmp_path / "run")))
    with (
        pytest.raises(JobError, match=r"this host is out of memory \(no room\); each device: .* kB weights"),
        explaining_memory(inputs),
    ):
        raise MemoryError("no room")
    with pytest.raises(RuntimeError, match="something else"), explaining_memory(inputs):
        raise RuntimeError("something else")
