"""Streamed statistics equal those computed at once, however the rows are cut."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pod_job.formats import norm_sketch, statistics
from pod_job.formats.records import decode, encode
from pod_job.formats.statistics import StatisticsRecord


def _vectors(rows: int, width: int, dtype: np.dtype | type = np.float32, seed: int = 0) -> np.ndarray:
    """Like activations: dimensions of very different size and mean, and a few rows far out."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((rows, width)) * rng.lognormal(size=width) + 30 * rng.standard_normal(width)
    vectors[:: max(rows // 3, 1)] *= 500
    return vectors.astype(np.float32).astype(dtype)


def through_json(measured: statistics.TapStatistics) -> statistics.TapStatistics:
    """Returns what a commit record gives back of the statistics."""
    return statistics.from_record(decode(encode(statistics.to_record(measured)), StatisticsRecord, "record"))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_equal_to_a_direct_computation(dtype: np.dtype) -> None:
    vectors = _vectors(3000, 257, dtype)  # several chunks, the last one short
    exact = vectors.astype(np.float64)
    lengths = np.linalg.norm(exact, axis=1)
    summary = statistics.summary(statistics.compute(vectors))
    np.testing.assert_allclose(summary.mean, exact.mean(0), rtol=1e-9)
    np.testing.assert_allclose(summary.variance, exact.var(0), rtol=1e-9)
    assert summary.count == 3000
    assert summary.mean_norm == pytest.approx(lengths.mean(), rel=1e-9)
    assert summary.mean_squared_norm == pytest.approx((lengths**2).mean(), rel=1e-9)
    assert (summary.norm_min, summary.norm_max) == pytest.approx((lengths.min(), lengths.max()), rel=1e-12)
    assert ((exact * summary.scale) ** 2).sum(1).mean() == pytest.approx(257, rel=1e-9)
    assert summary.outlier_share == pytest.approx((lengths > 10 * np.median(lengths)).mean(), abs=1e-9)


@pytest.mark.parametrize("rows", [1, 10, 50_000])
def test_quantiles_and_outliers_of_many_batches_are_right_to_a_millionth(rows: int) -> None:
    vectors = np.random.default_rng(1).lognormal(sigma=2, size=(rows, 4)).astype(np.float32)
    exact = np.linalg.norm(vectors.astype(np.float64), axis=1)
    tally = statistics.Tally(4)
    for part in np.array_split(vectors, 7):  # some are empty
        tally.add(through_json(statistics.compute(part)))
    summary = tally.summary()
    for q, quantile in summary.norm_quantiles.items():
        assert quantile == pytest.approx(np.quantile(exact, float(q), method="inverted_cdf"), rel=1e-6), q
    median = np.quantile(exact, 0.5, method="inverted_cdf")
    assert summary.outlier_share == pytest.approx((exact > 10 * median).mean(), abs=1e-9)
    assert summary.outlier_share > 0 or rows < 50_000


def test_a_tally_counts_every_norm_however_often_it_sorts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norm_sketch, "WAITING_KEYS", 50)
    parts = [np.random.default_rng(i).integers(0, 99, 30).astype(np.float64) for i in range(20)]
    tally = norm_sketch.NormTally()
    for part in parts:
        tally.add(norm_sketch.keys_of(part))
    keys, counts = np.unique(norm_sketch.keys_of(np.concatenate(parts)), return_counts=True)
    np.testing.assert_array_equal(tally.counts().keys, keys)
    np.testing.assert_array_equal(tally.counts().counts, counts)


def test_norms_take_little_room_and_damaged_ones_are_refused() -> None:
    keys = norm_sketch.keys_of(np.random.default_rng(0).lognormal(5, 0.3, 2000) * 100)
    text = norm_sketch.to_text(keys)
    assert len(text) < 3.5 * len(keys)
    np.testing.assert_array_equal(norm_sketch.from_text(text, 2000), keys)
    for damaged in (text[:-8], text[4:], "!" + text, norm_sketch.to_text(keys[:-1])):
        with pytest.raises(ValueError, match="norms"):
            norm_sketch.from_text(damaged, 2000)


def test_a_small_spread_around_a_large_mean_keeps_its_digits() -> None:
    rng = np.random.default_rng(2)
    vectors = (1e4 + rng.integers(-2, 3, (1000, 3)) * 2.0**-10).astype(np.float32)
    summary = statistics.summary(statistics.compute(vectors))
    np.testing.assert_allclose(summary.variance, vectors.astype(np.float64).var(0), rtol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 400), max_size=4))
def test_any_cut_gives_equal_statistics(cuts: list[int]) -> None:
    vectors = _vectors(400, 9)
    expected, parts = statistics.compute(vectors), statistics.compute(vectors[:0])
    for start, stop in zip([0, *sorted(cuts)], [*sorted(cuts), 400], strict=True):
        parts = statistics.merge(parts, statistics.compute(vectors[start:stop]))
    np.testing.assert_allclose(parts.mean, expected.mean, rtol=1e-12)
    np.testing.assert_allclose(parts.squared_deviations, expected.squared_deviations, rtol=1e-9)
    np.testing.assert_array_equal(parts.norm_keys, expected.norm_keys)
    assert (parts.count, parts.norm_min, parts.norm_max) == (expected.count, expected.norm_min, expected.norm_max)


def test_rows_that_are_not_finite_are_counted_and_left_out() -> None:
    vectors = _vectors(100, 5, ml_dtypes.bfloat16)
    broken = vectors.copy()
    broken[[3, 50], [0, 4]] = np.nan, np.inf
    summary, rest = statistics.compute(broken), statistics.compute(np.delete(vectors, [3, 50], axis=0))
    assert (summary.count, summary.nonfinite) == (98, 2)
    np.testing.assert_allclose(summary.mean, rest.mean, rtol=1e-12)


def test_json_keeps_every_bit() -> None:
    for vectors in (_vectors(77, 6), _vectors(0, 6)):
        before = statistics.compute(vectors)
        after = through_json(before)
        assert vars(after).keys() == vars(before).keys()
        for name, value in vars(before).items():
            np.testing.assert_array_equal(getattr(after, name), value)


def test_a_batch_without_rows_has_a_summary() -> None:
    summary = statistics.summary(statistics.compute(np.zeros((0, 3), np.float32)))
    assert (summary.count, summary.mean_norm, summary.scale, summary.variance) == (0, 0.0, 1.0, [0.0] * 3)
