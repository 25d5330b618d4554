"""The plan of work."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pod_job.errors import JobError
from pod_job.planning.batches import assign_batches, batch_samples, total_batches


@given(st.integers(1, 5000), st.integers(1, 600))
def test_batches_partition_the_samples_in_order(samples: int, n: int) -> None:
    batches = [batch_samples(batch, samples, n) for batch in range(1, total_batches(samples, n) + 1)]
    assert [i for batch in batches for i in batch] == list(range(samples))
    assert all(len(batch) == n for batch in batches[:-1])


def test_more_batches_than_a_run_may_have_are_refused_with_the_least_that_will_do() -> None:
    with pytest.raises(JobError, match=r"save_every_n_samples=1 cuts 2,000,001 samples .*; raise it to 3 or more"):
        total_batches(2_000_001, 1)
    assert total_batches(2_000_001, 3) == 666_667


def test_batch_b_is_samples_from_b_minus_1_times_n() -> None:
    assert batch_samples(3, 5000, 512) == range(1024, 1536)


@given(st.lists(st.integers(1, 10**6), unique=True), st.integers(1, 64))
def test_every_pending_batch_is_assigned_to_one_feeder_that_has_its_neighbours(
    pending: list[int], feeders: int
) -> None:
    assigned = assign_batches(pending, feeders)
    assert [batch for batches in assigned for batch in batches] == pending
    assert max(map(len, assigned)) - min(map(len, assigned)) <= 1
    assert [batch for batches in assigned for batch in batches] == pending  # neighbors
