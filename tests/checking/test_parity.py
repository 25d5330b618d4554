"""The parity gate: its result is in metadata.json, on any mesh; a step with other vectors is refused."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from job_processes import JobProcess, finish, start

from pod_job.checking import reference
from pod_job.checking.limits import FLOAT32, excess, summary
from pod_job.checking.parity import check_parity
from pod_job.checking.trial import Trial
from pod_job.checking.verify import verify
from pod_job.config.load import load
from pod_job.finishing.merge import merge
from pod_job.formats.relative_errors import relative_errors
from pod_job.host.rendezvous import Host
from pod_job.models.arch import read_arch_file
from pod_job.planning.inputs import Inputs
from pod_job.prompts.prompt import Prompt
from pod_job.prompts.tokenizer import TokenizerFolder
from pod_job.run_folder import layout
from pod_job.run_folder.parity import TapErrors
from pod_job.storage.open import open_folder
from tools.tiny_model import write_tiny_model


def without_torch() -> None:
    """Has the job make the reference by our own code."""
    reference.torch_installed = lambda: False


def spoilt() -> None:
    """Has the reference differ, as from a miscompiled step."""
    without_torch()
    built_in = reference._built_in_taps

    def other(*arguments: Any) -> Any:
        truths, errors = built_in(*arguments)
        return truths | {"layer_2": truths["layer_2"] + abs(truths["layer_2"]).max()}, errors

    reference._built_in_taps = other


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"), layers=3)


def job(model: Path, run_dir: Path, *more: str, change: Callable[[], None] = without_torch) -> list[JobProcess]:
    overrides = [
        *("mesh=2x2", "tasks=arc_sample", "tasks.limit=4", "extract.seq_len=256", "parity.samples=3"),
        *(f"model.path={model}", "model.dtype=float32", "extract.layers=[1,2]", f"storage.run_dir={run_dir}"),
        *("extract.too_long=tail", *more),
    ]
    return start(overrides, hosts=1, devices=4, change=change)


@pytest.mark.parametrize(
    "more", [("extract=all_tokens", "sharding=tensor", "extract.dtype=float32"), ("sharding=fsdp",)], ids=str
)
def test_the_result_is_in_the_metadata(model: Path, tmp_path: Path, more: tuple[str, ...]) -> None:
    finish(job(model, tmp_path, *more))
    [result] = merge(open_folder(tmp_path)).parity
    assert msgspec.to_builtins(result) == json.loads((tmp_path / layout.METADATA).read_text())["parity"][0]
    assert (result.reference, result.prompts, result.passed) == (reference.BUILT_IN, 3, True)
    assert "torch is not installed" in (result.why_built_in or "")
    # All positions of 64, 32 and 32 tokens, or the last ones of these prompts and of some of their beginnings.
    assert result.rows == 64 + 32 + 32 if len(more) == 3 else 8 <= result.rows <= 20
    assert result.limits is not None
    assert result.rounding is not None
    assert result.errors.keys() == result.limits.keys() == result.rounding.keys()
    assert result.limit in [limit.largest for limit in result.limits.values()]
    assert result.limit == FLOAT32.largest if len(more) == 3 else FLOAT32.largest < result.limit < 2**-7
    assert result.errors.keys() == {"layer_1", "layer_2"}
    rounding = 1e-5 if len(more) == 3 else 2**-8
    assert all(0 < error.median <= error.largest < rounding for error in result.errors.values())
    assert verify(tmp_path).sound


@pytest.mark.pod
def test_generation_is_compared_with_the_reference_over_prompt_and_new_tokens(model: Path, tmp_path: Path) -> None:
    generation = ("mode=generate", "generate.max_new_tokens=18", "extract.positions=all", "extract.dtype=float32")
    finish(job(model, tmp_path, *generation, "extract.rows_per_device=2", "sharding=tensor"))
    [result] = merge(open_folder(tmp_path)).parity
    texts = [json.loads(line) for line in (tmp_path / "outputs/batch_000001.jsonl").read_text().splitlines()[:3]]
    assert len(texts) == 3
    assert (result.prompts, result.passed) == (3, True)
    assert 64 + 32 + 32 + 3 <= result.rows <= 64 + 32 + 32 + 3 * 16  # and one call of decode: at most 16 tokens
    assert all(0 < error.median <= error.largest < 1e-5 for error in result.errors.values())
    assert json.loads((tmp_path / "status/host_00.json").read_text())["seconds"] > 0


def test_a_step_that_is_off_is_refused_and_stores_nothing(model: Path, tmp_path: Path) -> None:
    output = finish(job(model, tmp_path, change=spoilt), status=2)
    assert "parity: layer_2 is" in output
    assert "rounding explains" in output
    assert not list(tmp_path.glob("commits/*"))
    [result] = merge(open_folder(tmp_path)).parity
    assert not result.passed


def test_the_result_of_an_earlier_start_of_the_same_name_is_removed_first(tmp_path: Path) -> None:
    class Tried(Exception):
        pass

    folder, host = open_folder(tmp_path), Host(0, 1, "by-hand", None)
    folder.replace(layout.parity_file("by-hand"), b"{}")
    inputs = object.__new__(Inputs)  # no more of it is needed
    config = load(["experiment=demo", f"storage.run_dir={tmp_path}"])
    tokenizer_folder = TokenizerFolder(write_tiny_model(tmp_path / "model"))
    arch, tasks = read_arch_file(tokenizer_folder.path / "config.json"), SimpleNamespace(samples=[])
    vars(inputs).update(folder=folder, config=config, arch=arch, tasks=tasks, tokenizer_folder=tokenizer_folder)

    def try_out(prompts: Sequence[Prompt]) -> list[Trial]:
        assert folder.stat(layout.parity_file("by-hand")) is None
        raise Tried

    with pytest.raises(Tried):
        check_parity(inputs, host, try_out, True)


def test_relative_errors_of_rows() -> None:
    truth = np.array([[3.0, 4.0], [0.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    vectors = np.array([[3.0, 4.5], [0.0, 0.0], [np.nan, 0.0], [np.inf, 0.0]])
    assert relative_errors(vectors, truth).tolist() == pytest.approx([0.1, 0.0, np.inf, np.inf])


@pytest.mark.parametrize(
    ("rows", "far", "times", "refused"),
    [(99, 1, 3.9, False), (99, 1, 4.1, True), (99, 2, 1.1, True), (100, 2, 3.9, False), (49, 1, 1.1, True)],
)
def test_one_row_of_fifty_may_be_further_off(rows: int, far: int, times: float, refused: bool) -> None:
    errors = np.full(rows, 0.005)
    errors[:far] = 0.04 * times
    assert (excess(summary(errors), TapErrors(median=0.01, largest=0.04)) > 1) == refused
