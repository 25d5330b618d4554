"""Bytes that hosts read of files that cannot be read in ranges, as a plan tells them."""

import pytest

from pod_job.planning.reading import read_factor, read_line


@pytest.mark.parametrize(
    ("files", "hosts", "factor"),
    [
        (1, 1, 1.0),
        (1, 16, 8.5),
        (4, 16, 2.5),
        (16, 16, 1.0),
        (17, 16, 1.44),
        (81, 16, 1.1),
        (1000, 16, 1.008),
        (0, 4, 1.0),
    ],
)
def test_the_factor_falls_with_the_files_of_a_host(files: int, hosts: int, factor: float) -> None:
    assert read_factor([100] * files, hosts) == pytest.approx(factor, rel=0.01)


def test_hosts_read_what_the_factor_says() -> None:
    """Counted host by host: from the start of the file in which its part begins to the end of its part."""
    sizes, hosts = [700, 20, 350, 999, 1, 4], 5
    total, read = sum(sizes), 0.0
    for host in range(hosts):
        begin, end, start = total * host / hosts, total * (host + 1) / hosts, 0
        for size in sizes:
            overlap = min(end, start + size) - max(begin, start)
            read += min(end, start + size) - start if overlap > 0 else 0
            start += size
    assert read_factor(sizes, hosts) == pytest.approx(read / total)


def test_a_plan_names_the_fix_where_it_is_worth_it() -> None:
    assert read_line([100] * 1000, 16) is None
    line = "are read 8.5 times, since 16 hosts share 1 of them; use 80 or more, or gzip files by bgzip, or Parquet"
    assert line in str(read_line([100], 16))
