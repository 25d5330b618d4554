"""Slices that Cloud TPU sells have the right names, grids and hosts; others are refused with the nearest names."""

import math

import pytest

from pod_job.config.load import load
from pod_job.errors import JobError
from pod_job.preflight import tpu_facts
from pod_job.preflight.report import pod_slice


@pytest.mark.parametrize(
    ("name", "topology", "hosts", "chips_per_host"),
    [
        ("v5litepod-1", "v5e:1x1", 1, 1),
        ("v5litepod-8", "v5e:2x4", 1, 8),
        ("v5litepod-64", "v5e:8x8", 16, 4),
        ("v5litepod-128", "v5e:8x16", 32, 4),
        ("v6e-16", "v6e:4x4", 4, 4),
        ("v5p-8", "v5p:2x2x1", 1, 4),
        ("v5p-32", "v5p:2x2x4", 4, 4),
        ("v4-64", "v4:2x4x4", 8, 4),
        ("v5p-1536", "v5p:8x8x12", 192, 4),
        ("v5p-12288", "v5p:16x16x24", 1536, 4),
        ("tpu7x-8", "tpu7x:2x2x1", 1, 8),
        ("tpu7x-128", "tpu7x:4x4x4", 16, 8),
    ],
)
def test_slices(name: str, topology: str, hosts: int, chips_per_host: int) -> None:
    pod = tpu_facts.read_accelerator_type(name)
    assert (pod.topology, pod.hosts, pod.chips_per_host) == (topology, hosts, chips_per_host)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("v5e64", "did you mean v5litepod-64"),
        ("v5e-64", "did you mean v5litepod-64"),  # what many call it, and Cloud TPU does not
        ("v5litpod-16", "did you mean v5litepod-16"),
        ("v7x-8", "use one of v5litepod-N, v6e-N, v5p-N, v4-N"),
        ("v5litepod-48", "nearest are v5litepod-32 or v5litepod-64"),
        ("v6e-2", "nearest are v6e-1 or v6e-4"),
        ("v5p-7", "nearest are v5p-8 or v5p-16"),
        ("v4-4", "nearest are v4-8 or v4-16"),
        ("v5p-16384", "nearest are"),
    ],
)
def test_unknown_slices_are_refused_with_the_nearest(name: str, near: str) -> None:
    with pytest.raises(JobError, match=f"pod.accelerator_type={name}.*{near}"):
        tpu_facts.read_accelerator_type(name)


def test_every_size_of_a_chip_has_a_grid_of_that_many_chips() -> None:
    for prefix, chip in tpu_facts.PREFIXES.items():
        for chips in tpu_facts.known_sizes(chip):
            pod = tpu_facts.read_accelerator_type(f"{prefix}-{chips * chip.cores}")
            assert math.prod(pod.grid) == chips == pod.hosts * pod.chips_per_host / chip.devices


def test_hosts_must_be_those_of_the_slice() -> None:
    with pytest.raises(JobError, match="16 hosts of 4 chips"):
        pod_slice(load(["experiment=v5e64", "storage.run_dir=r", "pod.hosts=8", "pod.devices_per_host=8"]))
