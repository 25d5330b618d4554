"""Requests of leases by many slices: below what Cloud Storage takes for a new prefix."""

import subprocess
import sys

import pytest

# https://cloud.google.com/storage/docs/request-rate: a bucket's first capacity; lists and reads share one.
WRITES_S, READS_S = 1000, 5000


@pytest.mark.pod
def test_sixty_four_slices_ask_less_than_a_new_prefix_takes() -> None:
    """Also at the end, when all look at the same few blocks; one slice in three is lost."""
    command = [sys.executable, "-m", "tools.lease_rate", "--fleets", "64x8", "--batches", "1000"]
    table = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    names, values = ([cell.strip() for cell in line.strip("|").split("|")] for line in (table[0], table[-1]))
    row = dict(zip(names, values, strict=True))
    assert int(row["creates/s"]) < WRITES_S / 2  # statuses and commits come on top
    assert int(row["lists/s"]) + int(row["reads/s"]) < READS_S
    assert float(row["twice"].rstrip("%")) < 2
