"""Prompts of the gate reach past what a model's positions change, are no longer than that, and name what they miss."""

import json
from pathlib import Path

import pytest

from pod_job.checking.gate_prompts import gate_prompts, windows_not_reached
from pod_job.config.load import load
from pod_job.planning.inputs import Inputs, read_inputs
from tools.tiny_model import write_tiny_model


def inputs_of(folder: Path, window: int | None, *more: str) -> Inputs:
    """Inputs of a model with this sliding window, and prompts of hundreds of tokens."""
    model = write_tiny_model(folder / "model", family="mistral", layers=2)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"sliding_window": window}))
    overrides = [f"model.path={model}", "tasks=arc_sample", f"storage.run_dir={folder / 'run'}", *more]
    return read_inputs(load([*overrides, "extract.too_long=tail"]))


@pytest.mark.parametrize(
    ("window", "seq_len", "lengths", "missed"),
    [
        (None, 1024, [64, 32], []),
        (None, 4000, [64, 32], []),
        (40, 1024, [72, 32], []),
        (500, 4000, [532, 32], []),
        (2000, 1024, [64, 32], []),  # no prompt of the run reaches it either
        (2000, 4000, [64, 32], [2000]),
        (1000, 1024, [992, 32], [1000]),
        (50, 40, [30, 10], []),
    ],
)
def test_lengths_follow_from_the_window(
    tmp_path: Path, window: int | None, seq_len: int, lengths: list[int], missed: list[int]
) -> None:
    inputs = inputs_of(tmp_path, window, f"extract.seq_len={seq_len}")
    prompts = gate_prompts(inputs)
    assert [len(prompt.token_ids) for prompt in prompts] == lengths
    assert windows_not_reached(inputs, max(lengths)) == missed


def test_tokens_that_are_generated_can_go_past_a_window(tmp_path: Path) -> None:
    more = ("mode=generate", "extract.seq_len=1024", "generate.max_new_tokens=2000")
    assert windows_not_reached(inputs_of(tmp_path, 2000, *more), 64) == [2000]


def test_they_carry_no_marks_of_the_prompts_they_are_cut_from(tmp_path: Path) -> None:
    for prompt in gate_prompts(inputs_of(tmp_path, 8, "extract.seq_len=256", "parity.samples=4")):
        assert (prompt.rows, prompt.special, prompt.origin, prompt.dropped) == (None, None, None, 0)
