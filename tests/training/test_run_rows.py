"""Rows of a finished run: each once in a pass, in one order for any number of hosts, flagged ones never usable."""

from dataclasses import replace

import numpy as np
import pytest
from sample_runs import TAPS, WIDTH, batch, identity, joined

from pod_job.finishing.merge import merge
from pod_job.planning.training import SourceRun
from pod_job.run_folder.commit import commit_batch
from pod_job.run_folder.identity import claim
from pod_job.run_folder.metadata import read_any
from pod_job.storage.open import open_folder
from pod_job.training import run_rows as module
from pod_job.training.run_rows import RunOrder, RunRows

COUNTS = [11, 0, 7, 30, 2]
SPECIAL = 3
"""Rows of a batch that this divides are those of special tokens."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[SourceRun, dict[str, np.ndarray]]:
    folder = open_folder(tmp_path_factory.mktemp("run") / "source")
    claim(folder, identity(8 * len(COUNTS)))
    batches = []
    for number, count in enumerate(COUNTS, 1):
        made = batch(number, count)
        batches.append(replace(made, rows=replace(made.rows, special=np.arange(count) % SPECIAL == 0)))
        commit_batch(folder, batches[-1], host=0)
    merge(folder)
    return SourceRun(folder, read_any(folder)), {tap: joined(batches, tap) for tap in TAPS}


@pytest.mark.parametrize(("rows", "block"), [(50, 8), (50, 50), (50, 64), (1, 1), (48, 8)])
def test_every_pass_has_every_row_once_and_an_order_of_its_own(rows: int, block: int) -> None:
    order = RunOrder(rows, block, seed=3)
    passes = [np.concatenate([np.arange(*span) for span in order.spans(start, start + rows)]) for start in (0, rows, 0)]
    for taken in passes:
        np.testing.assert_array_equal(np.sort(taken), np.arange(rows))
    np.testing.assert_array_equal(passes[0], passes[2])
    if rows > 4 * block:
        assert not np.array_equal(passes[0], passes[1])


@pytest.mark.parametrize("part", [1, 7, 25, 50])
def test_parts_of_any_size_make_up_the_same_rows_across_passes(
    source: tuple[SourceRun, dict[str, np.ndarray]], part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK_ROWS", 8)
    rows = RunRows(source[0], TAPS, seed=1)
    whole, valid = rows.read(30, 130)
    parts = [rows.read(start, min(start + part, 130)) for start in range(30, 130, part)]
    np.testing.assert_array_equal(valid, np.concatenate([marks for _, marks in parts]))
    for tap in TAPS:
        np.testing.assert_array_equal(whole[tap], np.concatenate([vectors[tap] for vectors, _ in parts]))


def test_vectors_of_all_taps_are_of_the_same_row_and_flagged_rows_are_not_usable(
    source: tuple[SourceRun, dict[str, np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK_ROWS", 8)
    run, truth = source
    rows = RunRows(run, TAPS, seed=5)
    numbers = np.concatenate([np.arange(*span) for span in rows.order.spans(0, sum(COUNTS))])
    vectors, valid = rows.read(0, sum(COUNTS))
    for tap in TAPS:
        assert vectors[tap].shape == (sum(COUNTS), WIDTH)
        np.testing.assert_array_equal(vectors[tap], truth[tap][numbers])
    special = np.concatenate([np.arange(count) % SPECIAL == 0 for count in COUNTS])
    np.testing.assert_array_equal(valid, ~special[numbers])
