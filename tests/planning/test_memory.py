"""Memory of a run: shown in the plan, and with the settings that lower it where a job runs out of memory."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from job_processes import finish, start
from safetensors.numpy import load_file

from pod_job.config.load import load
from pod_job.errors import JobError
from pod_job.models.cache import Kept, empty_cache, no_key_values, no_states
from pod_job.planning.inputs import read_inputs
from pod_job.planning.memory import (
    MOST_LOCAL_ROWS,
    MOST_ROWS,
    SHARE_FOR_ROWS,
    check_rows,
    described,
    explaining_memory,
    run_memory,
    with_fitting_rows,
    with_rows,
)
from pod_job.preflight.chosen_rows import with_chosen_rows
from pod_job.preflight.planned_job import planned_job
from pod_job.preflight.tpu_facts import read_accelerator_type
from tools.tiny_model import write_tiny_model

ROWS = "extract.rows_per_device"


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
    slots = 3 * 128  # of three rows of the cache: 64 + 32, in whole vector registers
    reading = 3 * 64  # positions of the row of prefill
    assert generated.cache == (slots + reading) * 4 * 2 * 2 * 16 * 4  # layers, keys and values, heads, size, float32
    assert generated.vectors == 2 * (3 + 3 * 16) * vector  # three prompts in the row of prefill
    assert generated.batches == 8 * 20 * vector * writers_and_two
    tensor = of(**generation, **{"pod.devices_per_host": 2, "mesh.model": 2, "sharding": "tensor"})
    assert tensor.cache == generated.cache // 2
    assert tensor.weights < generated.weights * 0.6
    assert "keys and values" in described(generated)
    assert "keys and values" not in described(last)


def test_states_of_delta_rules_are_counted_as_they_are_kept(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "model", "qwen3_5_text", layers=5)
    changes = {"mode": "generate", "generate.max_new_tokens": 20, "extract.rows_per_device": 3}
    inputs = read_inputs(load(overrides(folder, tmp_path / "run", **changes)))
    memory = run_memory(inputs)

    def kept() -> list[Kept]:
        rows, prompts, positions = empty_cache(inputs.arch, 3, 128, jnp.float32, jnp.float32).kept, 3, 3 * 64
        reading = no_key_values(inputs.arch, 1, positions, jnp.float32)
        return [rows, Kept(reading, no_states(inputs.arch, prompts, jnp.float32))]

    def size(arrays: Any) -> int:
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(arrays))

    parts = jax.eval_shape(kept)
    assert memory.cache == sum(size(part.keys) for part in parts)
    assert memory.states == sum(size(part.states) for part in parts)
    assert " states" in described(memory)
    assert run_memory(read_inputs(load(overrides(folder, tmp_path / "run")))).states == 0


def test_rows_that_do_not_fit_are_refused_with_the_number_that_does(model: Path, tmp_path: Path) -> None:
    generation = {"mode": "generate", "generate.max_new_tokens": 20, "extract.rows_per_device": 100}
    inputs = read_inputs(load(overrides(model, tmp_path / "run", **generation)))
    for fits in (1, 7, 64, 99):
        room = with_rows(inputs, fits).device
        assert with_rows(inputs, fits + 1).device > room
        with pytest.raises(JobError) as refused:
            check_rows(inputs, room, "a v5e chip")
        assert str(refused.value).startswith("extract.rows_per_device=100: the run takes ")
        assert str(refused.value).endswith(f"; use extract.rows_per_device={fits} or less")
    check_rows(inputs, run_memory(inputs).device, "a v5e chip")
    with pytest.raises(JobError, match=r"a v5e chip has .*; not one row fits: lower extract.seq_len or generate.max"):
        check_rows(inputs, with_rows(inputs, 1).device - 1, "a v5e chip")


def test_rows_left_to_be_chosen_are_the_most_that_fit_and_change_nothing_of_the_run(
    model: Path, tmp_path: Path
) -> None:
    generation = {"mode": "generate", "generate.max_new_tokens": 20, "extract.rows_per_device": 0}
    inputs = read_inputs(load(overrides(model, tmp_path / "run", **generation)))
    for fits in (1, 7, MOST_ROWS - 1, MOST_ROWS):
        room = math.ceil(with_rows(inputs, fits).device / SHARE_FOR_ROWS)
        chosen = with_fitting_rows(inputs, room)
        assert chosen.config.extract.rows_per_device == fits
        assert chosen.identity == inputs.identity
        check_rows(chosen, room, "a v5e chip")
    assert with_fitting_rows(inputs, 1 << 50).config.extract.rows_per_device == MOST_ROWS
    with pytest.raises(JobError, match="not one row fits"):
        check_rows(with_fitting_rows(inputs, 1000), 1000, "a v5e chip")
    given = replace(inputs, config=load(overrides(model, tmp_path / "run", **generation | {ROWS: 3})))
    assert with_fitting_rows(given, 1 << 50) == given


def test_a_job_and_its_preflight_choose_rows_by_the_chip_or_the_machine(model: Path, tmp_path: Path) -> None:
    generation = {"mode": "generate", "generate.max_new_tokens": 20, "extract.rows_per_device": 0}
    local = read_inputs(load(overrides(model, tmp_path / "run", **generation)))
    assert with_chosen_rows(local).config.extract.rows_per_device == MOST_LOCAL_ROWS
    large = {"pod": "v5e_8", "mesh.data": 8, "extract.seq_len": 2048, "generate.max_new_tokens": 2000}
    config = load(overrides(model, tmp_path / "run", **generation | large))
    job, _, _ = planned_job(config, read_accelerator_type("v5litepod-8"))
    on_host = with_chosen_rows(read_inputs(config))
    assert job.config.extract == on_host.config.extract
    assert on_host.config.extract.rows_per_device == MOST_ROWS
    with pytest.raises(JobError, match=r"extract.rows_per_device=0 chooses rows with mode=generate only; use 1"):
        load(overrides(model, tmp_path / "run", **{ROWS: 0}))


def test_workers_whose_kind_is_not_known_take_the_rows_that_are_given(model: Path, tmp_path: Path) -> None:
    """As the document's command starts them."""
    unknown = {"pod": "v5e_8", "pod.accelerator_type": "null", "mesh.data": 8}
    given = read_inputs(load(overrides(model, tmp_path / "run", **unknown)))
    assert with_chosen_rows(given) is given
    generation = unknown | {"mode": "generate", "generate.max_new_tokens": 20, "extract.rows_per_device": 0}
    with pytest.raises(JobError, match=r"rows_per_device=0 is as many as fit, and without pod.accelerator_type"):
        with_chosen_rows(read_inputs(load(overrides(model, tmp_path / "run", **generation))))
    misspelled = generation | {"pod.accelerator_type": "v5e-8"}
    with pytest.raises(JobError, match=r"accelerator_type=v5e-8 is not known .* did you mean v5litepod-8"):
        with_chosen_rows(read_inputs(load(overrides(model, tmp_path / "run", **misspelled))))


def test_a_job_of_more_rows_than_this_machine_holds_does_not_start(model: Path, tmp_path: Path) -> None:
    # Terabytes of cache, which no machine has.
    greedy = {"mode": "generate", "generate.max_new_tokens": 4000, "extract.rows_per_device": 1 << 18}
    said = finish(start(overrides(model, tmp_path, **greedy, **{"extract.seq_len": 8}), 1, 1), status=2)
    assert "GB keys and values" in said
    assert "of each device, and this machine, for each of its devices, has " in said


def test_a_device_that_is_full_is_told_with_what_is_held_and_what_to_lower(model: Path, tmp_path: Path) -> None:
    inputs = read_inputs(load(overrides(model, tmp_path / "run")))
    said = r"a device is out of memory \(Out of memory\); each device: .*; for less on a device lower extract.rows_per"
    with pytest.raises(JobError, match=said), explaining_memory(inputs):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory")


def test_a_full_host_is_told_too_and_other_errors_pass(model: Path, tmp_path: Path) -> None:
    inputs = read_inputs(load(overrides(model, tmp_path / "run")))
    with (
        pytest.raises(JobError, match=r"this host is out of memory \(no room\); each device: .* kB weights"),
        explaining_memory(inputs),
    ):
        raise MemoryError("no room")
    with pytest.raises(RuntimeError, match="something else"), explaining_memory(inputs):
        raise RuntimeError("something else")
