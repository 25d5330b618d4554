"""What is known about Cloud TPU chips and slices: speeds, sizes, prices, and how a slice is named. No jax."""

import math
import re
from dataclasses import dataclass

from pod_job.errors import JobError

GB = 1_000_000_000
GIB = 1 << 30

# Sustained from one host to a bucket, with the default number of writers. An assumption, on the safe side.
BUCKET_BYTES_S = 1 * GB

PRICES_FROM = (
    "list price per chip-hour in US regions, cloud.google.com/tpu/pricing as known in mid 2025; "
    "spot is about 0.45 of it and changes monthly (cloud.google.com/spot-vms/pricing)"
)


@dataclass(frozen=True, kw_only=True)
class Chip:
    """One chip as jax sees it. Rates per second; sources: the system architecture pages of cloud.google.com/tpu.

    Attributes:
        cycles_s: clock of the compiler's estimates: peak / (2 x 128 x 128 x number of matrix units), as the peak is
            published.
        network_bytes_s: both directions of one link to a neighbour, what a gather along one mesh axis gets.
        host_bytes_s: from the chip to its host's memory; an assumption, PCIe shared by a host's chips.
        dimensions: of the network's grid.
        cores: TensorCores; accelerator types of v4 and v5p count these.
    """

    name: str
    peak_flops: float
    cycles_s: float
    hbm_bytes: int
    hbm_bytes_s: float
    network_bytes_s: float
    host_bytes_s: float
    dimensions: int
    cores: int
    list_usd_hour: float

    @property
    def spot_usd_hour(self) -> float:
        return 0.45 * self.list_usd_hour


V5E = Chip(
    name="v5e",
    peak_flops=197e12,
    cycles_s=1.5e9,
    hbm_bytes=16 * GIB,
    hbm_bytes_s=819e9,
    network_bytes_s=90e9,
    host_bytes_s=8e9,
    dimensions=2,
    cores=1,
    list_usd_hour=1.20,
)
V6E = Chip(
    name="v6e",
    peak_flops=918e12,
    cycles_s=1.75e9,
    hbm_bytes=32 * GIB,
    hbm_bytes_s=1640e9,
    network_bytes_s=180e9,
    host_bytes_s=8e9,
    dimensions=2,
    cores=1,
    list_usd_hour=2.70,
)
V5P = Chip(
    name="v5p",
    peak_flops=459e12,
    cycles_s=1.75e9,
    hbm_bytes=95 * GIB,
    hbm_bytes_s=2765e9,
    network_bytes_s=180e9,
    host_bytes_s=8e9,
    dimensions=3,
    cores=2,
    list_usd_hour=4.20,
)
V4 = Chip(
    name="v4",
    peak_flops=275e12,
    cycles_s=1.05e9,
    hbm_bytes=32 * GIB,
    hbm_bytes_s=1228e9,
    network_bytes_s=90e9,
    host_bytes_s=8e9,
    dimensions=3,
    cores=2,
    list_usd_hour=3.22,
)

# Prefixes of Cloud TPU accelerator types.
PREFIXES = {"v5litepod": V5E, "v5e": V5E, "v6e": V6E, "v5p": V5P, "v4": V4}


@dataclass(frozen=True)
class Slice:
    """A pod slice: `chips` chips, `chips_per_host` on each VM, `grid` their network's shape."""

    chip: Chip
    chips: int
    chips_per_host: int
    grid: tuple[int, ...]

    @property
    def hosts(self) -> int:
        return self.chips // self.chips_per_host

    @property
    def topology(self) -> str:
        """The compiler's name for it, such as v5e:8x8."""
        return f"{self.chip.name}:{'x'.join(map(str, self.grid))}"


def read_accelerator_type(name: str) -> Slice:
    """The slice that Cloud TPU sells as `name`, such as v5litepod-64, v6e-8 or v4-32.

    Raises:
        JobError: not such a name, or a size that is not a power of two of whole VMs.
    """
    found = re.fullmatch(r"(\w+)-(\d+)", name)
    if not found or found[1] not in PREFIXES:
        known = ", ".join(f"{prefix}-N" for prefix in PREFIXES)
        raise JobError(f"pod.accelerator_type={name} is not known to the compiler here; use one of {known}")
    chip = PREFIXES[found[1]]
    chips, rest = divmod(int(found[2]), chip.cores)
    smallest = 1 if chip.dimensions == 2 else 4
    if rest or chips < smallest or chips & (chips - 1):
        sizes = ", ".join(str(smallest * chip.cores << n) for n in range(6))
        raise JobError(
            f"pod.accelerator_type={name}: no slice of that size is known; use {found[1]}- with {sizes}, ..."
        )
    # v5e and v6e of up to 8 chips are one VM, larger ones and all of v4 and v5p have 4 chips on each.
    per_host = chips if chip.dimensions == 2 and chips <= 8 else 4
    return Slice(chip, chips, per_host, grid(chips, chip.dimensions))


def grid(chips: int, dimensions: int) -> tuple[int, ...]:
    """The squarest grid of a power of two; the short sides of three dimensions come first, but 4 chips are 2x2x1."""
    doublings = int(math.log2(chips))
    sides = [doublings // dimensions + (i < doublings % dimensions) for i in range(dimensions)]
    if chips == 4:
        return (2, 2, 1)[:dimensions]
    return tuple(1 << side for side in sorted(sides))
