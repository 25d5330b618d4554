"""The plan of work."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pod_job.config.load import load
from pod_job.errors import JobError
from pod_job.planning.batches import assign_batches, batch_samples, feeding_hosts, idle_line, total_batches


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


@pytest.mark.parametrize(("samples", "hosts"), [(44, 16), (17, 16), (16, 16), (1000, 3), (2, 2)])
def test_the_batch_size_of_the_warning_gives_every_host_a_batch(samples: int, hosts: int) -> None:
    line = idle_line(samples, 1, hosts)
    assert line is not None
    assert line.startswith(f"{hosts - 1} of {hosts} hosts")
    per_batch = int(line.partition("save_every_n_samples=")[2].split()[0])
    assert total_batches(samples, per_batch) >= hosts
    assert total_batches(samples, per_batch + 1) < hosts or per_batch == 1


def test_there_is_no_warning_where_every_host_has_a_batch_and_no_advice_where_none_can() -> None:
    assert idle_line(44, 16, 16) is None
    assert "there are 3 samples" in (idle_line(3, 3, 16) or "")


@pytest.mark.parametrize(
    ("overrides", "hosts"),
    [([], 16), (["sharding=tensor"], 8), (["mesh.data=64", "mesh.model=1"], 16), (["pod.slices=3"], 48)],
)
def test_hosts_that_share_the_rows_of_the_mesh_feed_them_together(overrides: list[str], hosts: int) -> None:
    assert feeding_hosts(load(["experiment=v5e64", "storage.run_dir=gs://b/r", *overrides])) == hosts
