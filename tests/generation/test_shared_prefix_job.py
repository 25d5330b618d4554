"""A job whose prompts begin alike: the same run whether their prefix is computed once or with each, also in turns."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from job_processes import finish, start

from pod_job.checking.gate_prompts import PREFIX_TOKENS, gate_prompts
from pod_job.config.load import load
from pod_job.planning.inputs import read_inputs
from pod_job.planning.memory import run_memory
from pod_job.planning.shared_prefix import SHORTEST, common_prefix
from pod_job.prompts.prompt import Prompt
from pod_job.prompts.sources.sample import Sample
from pod_job.reading.dataset import ActivationDataset
from pod_job.run_folder.completions import Completion, read_completions
from pod_job.run_folder.layout import METADATA, commit_file
from pod_job.storage.open import open_folder
from tools.tiny_model import write_tiny_model

HEADER = "Continue the list in the way in which it goes on; give one item, and nothing else before or behind it. " * 2
SAMPLES, PER_BATCH, BATCHES = 10, 4, 3
SLOTS = 256
"""Slots that the header's tokens take."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"), layers=4)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    lines = [
        {"task_id": f"list_{i}", "text": f"{HEADER}{'abcdefghij'[i]}" + f" {i}," * (i % 5)} for i in range(SAMPLES)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def overrides(model: Path, texts: Path, run_dir: Path, **changes: Any) -> list[str]:
    values = {
        "mode": "generate",
        "model.path": model,
        "model.dtype": "float32",
        "tasks": "texts",
        "tasks.path": texts,
        "extract.positions": "all",
        "extract.dtype": "float32",
        "extract.seq_len": 260,
        "extract.rows_per_device": 3,
        "extract.layers": [1, 3],
        "extract.save_every_n_samples": PER_BATCH,
        "generate.max_new_tokens": 18,
        "generate.temperature": 1.0,
        "parity.samples": 2,
        "storage.run_dir": run_dir,
    }
    return [f"{key}={value}" for key, value in (values | changes).items()]


def completions(run_dir: Path) -> list[Completion]:
    folder = open_folder(str(run_dir))
    return [one for batch in range(1, BATCHES + 1) for one in read_completions(folder, batch)]


def assert_same(run_dir: Path, other: Path) -> None:
    assert completions(run_dir) == completions(other)
    for layer in (1, 3):
        found, expected = (ActivationDataset(str(folder), layer=layer) for folder in (run_dir, other))
        of_found, of_expected = found.rows(slice(None)), expected.rows(slice(None))
        for column in ("task_id", "position", "token_id"):
            assert list(of_found[column]) == list(of_expected[column])
        np.testing.assert_allclose(found[:], expected[:], rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def whole(model: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that reads every prompt whole."""
    run_dir = tmp_path_factory.mktemp("whole")
    finish(start(overrides(model, texts, run_dir, **{"generate.share_prefix": "false"}), 1, 1))
    return run_dir


@pytest.mark.pod
def test_a_run_that_shares_the_prefix_is_the_same_and_passes_the_gate(
    model: Path, texts: Path, whole: Path, tmp_path: Path
) -> None:
    finish(start(overrides(model, texts, tmp_path), 1, 1))
    assert_same(tmp_path, whole)
    log = (tmp_path / "logs/host_00.log").read_text()
    assert f"the first {len(HEADER)} tokens of prompts that begin alike are computed once" in log
    assert "parity with" in log


@pytest.mark.slow
@pytest.mark.pod
def test_the_same_run_on_two_hosts_that_split_the_heads(model: Path, texts: Path, whole: Path, tmp_path: Path) -> None:
    mesh = {"mesh.data": 2, "mesh.model": 2, "sharding": "tensor"}
    finish(start(overrides(model, texts, tmp_path, **mesh), 2, 2))
    assert_same(tmp_path, whole)


@pytest.mark.slow
@pytest.mark.pod
@pytest.mark.parametrize("first", ["true", "false"])
def test_a_run_is_resumed_with_and_without_sharing(
    model: Path, texts: Path, whole: Path, tmp_path: Path, first: str
) -> None:
    """A batch with its completions but no commit, and one of which nothing is left, as after a kill."""
    finish(start(overrides(model, texts, tmp_path, **{"generate.share_prefix": first}), 1, 1))
    (tmp_path / METADATA).unlink()
    for batch in (2, 3):
        (tmp_path / commit_file(batch)).unlink()
    (tmp_path / "outputs/batch_000003.jsonl").unlink()
    second = {"true": "false", "false": "true"}[first]
    finish(start(overrides(model, texts, tmp_path, **{"generate.share_prefix": second}), 1, 1))
    assert_same(tmp_path, whole)


def test_the_plan_counts_the_slots_of_the_prefix(model: Path, texts: Path, tmp_path: Path) -> None:
    def inputs(**changes: Any) -> Any:
        return read_inputs(load(overrides(model, texts, tmp_path / "run", **changes)))

    sharing, whole = inputs(), inputs(**{"generate.share_prefix": "false"})
    assert (len(sharing.prefix), len(whole.prefix)) == (len(HEADER), 0)
    arch, more = sharing.arch, run_memory(sharing).cache - run_memory(whole).cache
    assert more == 2 * arch.layers * arch.kv_heads * arch.head_dim * 4 * SLOTS
    assert sharing.identity == whole.identity


@pytest.mark.parametrize("family", ["gemma3_text", "qwen3_5_text"])
def test_prompts_of_models_that_keep_more_than_keys_or_see_less_are_read_whole(
    family: str, texts: Path, tmp_path: Path
) -> None:
    folder = write_tiny_model(tmp_path / "model", family, layers=4)
    assert read_inputs(load(overrides(folder, texts, tmp_path / "run"))).prefix == ()


def test_prompts_of_the_gate_begin_with_the_prefix_and_go_on_as_prompts_do(
    model: Path, texts: Path, tmp_path: Path
) -> None:
    inputs = read_inputs(load(overrides(model, texts, tmp_path / "run", **{"parity.samples": 4})))
    prompts = gate_prompts(inputs)
    first = inputs.first_prompts(1)[0].token_ids
    assert len(prompts) == 4
    for one in prompts:
        assert one.token_ids[:PREFIX_TOKENS].tolist() == list(inputs.prefix[:PREFIX_TOKENS])
        assert PREFIX_TOKENS < len(one.token_ids) <= inputs.config.extract.seq_len
    own = first[len(inputs.prefix) :]
    assert prompts[0].token_ids[PREFIX_TOKENS:][: len(own)].tolist() == own.tolist()


def prompt(ids: list[int]) -> Prompt:
    return Prompt(Sample("a", 0, np.array(ids, np.int32)), np.array(ids, np.int32))


def test_the_prefix_is_what_all_prompts_begin_with_and_none_ends_with() -> None:
    shared = list(range(SHORTEST))
    assert common_prefix([prompt([*shared, 1, 2, 3]), prompt([*shared, 1, 5]), prompt([*shared, 1, 2])]) == (*shared, 1)
    assert common_prefix([prompt([*shared, 1, 2, 3]), prompt([*shared, 1])]) == tuple(shared)
    assert common_prefix([prompt([*shared, 1, 2, 3]), prompt(shared)]) == ()
    assert common_prefix([prompt([*shared, 1]), prompt([7, *shared[1:], 1])]) == ()
    assert common_prefix([]) == ()


def test_a_prefix_that_is_less_than_half_of_the_prompts_is_not_shared() -> None:
    shared = list(range(SHORTEST))
    pairs = [[prompt([*shared, *[own] * (SHORTEST + more)]) for own in (1, 2)] for more in (0, 1)]
    assert [len(common_prefix(pair)) for pair in pairs] == [SHORTEST, 0]
