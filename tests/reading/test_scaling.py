"""Trainers get whole shuffled batches without end, scaled as if the rows they get had been measured."""

import itertools
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from pod_job.errors import JobError
from pod_job.reading.dataset import ActivationDataset
from pod_job.reading.scaling import endless, kept_statistics, scaling
from tests.sparse_run import ROWS, SINK_EVERY, TAP, sparse_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sparse_run(tmp_path_factory.mktemp("feed") / "run")


@pytest.mark.parametrize("exclude", [(), ("sink",), ("nonfinite",)])
def test_statistics_are_those_of_the_rows_that_are_kept(run: Path, exclude: tuple[str, ...]) -> None:
    dataset = ActivationDataset(run, TAP, exclude=exclude)
    every = dataset[:].astype(np.float64)
    count, mean, variance = kept_statistics(dataset)
    assert count == len(dataset) == (3 * ROWS if "sink" not in exclude else 3 * ROWS * (SINK_EVERY - 1) // SINK_EVERY)
    np.testing.assert_allclose(mean, every.mean(0), rtol=1e-9)
    np.testing.assert_allclose(variance, every.var(0), rtol=1e-7)


@pytest.mark.parametrize(("centre", "wanted"), [(False, None), (True, None), (False, 1.0)])
def test_scaled_rows_have_the_mean_squared_norm(run: Path, centre: bool, wanted: float | None) -> None:
    dataset = ActivationDataset(run, TAP, exclude=["sink"])
    scaled = scaling(dataset, centre=centre, mean_squared_norm=wanted)(dataset[:])
    assert scaled.dtype == np.float32
    assert np.mean(np.sum(scaled.astype(np.float64) ** 2, axis=1)) == pytest.approx(
        wanted or dataset.shape[1], rel=1e-5
    )
    if centre:
        np.testing.assert_allclose(scaled.mean(0), 0, atol=1e-5)


def test_numpy_jax_and_torch_are_scaled_alike(run: Path, torch_there: None) -> None:
    dataset = ActivationDataset(run, TAP)
    scaled = scaling(dataset, centre=True)
    numpy, torch = dataset[:8], ActivationDataset(run, TAP, as_="torch")[:8]
    np.testing.assert_allclose(scaled(torch).numpy(), scaled(numpy), rtol=1e-6)
    np.testing.assert_allclose(np.asarray(scaled(jnp.asarray(numpy))), scaled(numpy), rtol=1e-6)


def test_batches_are_whole_and_no_two_epochs_alike(run: Path) -> None:
    dataset = ActivationDataset(run, TAP)
    per_epoch = len(dataset) // 1000
    batches = [*itertools.islice(endless(dataset, 1000, as_="numpy"), 2 * per_epoch)]
    assert {len(batch) for batch in batches} == {1000}
    first, second = np.concatenate(batches[:per_epoch]), np.concatenate(batches[per_epoch:])
    assert not np.array_equal(first, second)
    again = np.concatenate([*itertools.islice(endless(dataset, 1000, as_="numpy"), per_epoch)])
    assert np.array_equal(first, again)


def test_a_batch_larger_than_the_run_is_refused(run: Path) -> None:
    dataset = ActivationDataset(run, TAP)
    with pytest.raises(JobError, match=r"batch_size=9000: more than the 4500 rows"):
        next(endless(dataset, 9000))
