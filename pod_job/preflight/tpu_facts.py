"""Facts about Cloud TPU chips and slices: speeds, sizes, prices and names. No jax.

Figures are public ones, looked up on 2026-11-23; docs/preflight.md has their sources.
"""

import difflib
import math
import re
from dataclasses import dataclass

from pod_job.errors import JobError
from pod_job.units import GB, GIB

BUCKET_BYTES_S = 1 * GB
"""Sustained from one host to a bucket with the default number of writers: an assumption, well below the 12.5 GB/s of
network that VMs of 4 chips share; preflight.bucket_gb_s sets it."""

PRICES_FROM = (
    "per chip-hour, list in US regions and spot in us-central1 (v4: us-central2), as of 2026-11-23 by the SkyPilot "
    "catalog v8; spot changes monthly"
)


@dataclass(frozen=True, kw_only=True)
class Chip:
    """One chip as jax sees it. Rates per second.

    Attributes:
        cycles_s: clock of the compiler's estimates: peak / (2 x 128 x 128 x number of matrix units), as the peak is
            published.
        hbm_bytes: memory that a program may use; above it the compiler refuses.
        link_bytes_s: of one link to a neighbor, both directions together.
        host_bytes_s: from the chip to its host's memory, assumed to be half of PCIe's published rate;
            preflight.host_gb_s sets it.
        dimensions: of the network's grid.
        cores: TensorCores; accelerator types of v4, v5p and TPU7x count these.
        most_chips: of the largest slice.
        list_usd_hour, spot_usd_hour: in the region that PRICES_FROM names; None: no source.
        devices: that jax sees on one chip; every figure above is that of a device.
    """

    name: str
    peak_flops: float
    cycles_s: float
    hbm_bytes: int
    hbm_bytes_s: float
    link_bytes_s: float
    host_bytes_s: float
    dimensions: int
    cores: int
    most_chips: int
    list_usd_hour: float | None
    spot_usd_hour: float | None
    devices: int = 1

    @property
    def api_name(self) -> str:
        """The name before the size in accelerator types."""
        return next(prefix for prefix, chip in PREFIXES.items() if chip is self)


V5E = Chip(
    name="v5e",
    peak_flops=197e12,
    cycles_s=1.5e9,
    hbm_bytes=int(15.75 * GIB),  # of 16
    hbm_bytes_s=819e9,
    link_bytes_s=100e9,  # 400 GB/s over 4 links
    host_bytes_s=7.5e9,
    dimensions=2,
    cores=1,
    most_chips=256,
    list_usd_hour=1.20,
    spot_usd_hour=0.245,
)
V6E = Chip(
    name="v6e",
    peak_flops=918e12,
    cycles_s=1.75e9,
    hbm_bytes=int(31.25 * GIB),  # of 32
    hbm_bytes_s=1638e9,
    link_bytes_s=200e9,  # 800 GB/s over 4 links
    host_bytes_s=16e9,
    dimensions=2,
    cores=1,
    most_chips=256,
    list_usd_hour=2.70,
    spot_usd_hour=0.544,
)
V5P = Chip(
    name="v5p",
    peak_flops=459e12,
    cycles_s=1.75e9,
    hbm_bytes=int(95.74 * GIB),  # "95 GB" in the documents
    hbm_bytes_s=2765e9,
    link_bytes_s=200e9,  # 1200 GB/s over 6 links
    host_bytes_s=7.5e9,
    dimensions=3,
    cores=2,
    most_chips=6144,
    list_usd_hour=4.20,
    spot_usd_hour=0.836,
)
V4 = Chip(
    name="v4",
    peak_flops=275e12,
    cycles_s=1.05e9,
    hbm_bytes=int(30.75 * GIB),  # of 32
    hbm_bytes_s=1200e9,
    link_bytes_s=90e9,
    host_bytes_s=7.5e9,
    dimensions=3,
    cores=2,
    most_chips=4096,
    list_usd_hour=3.22,
    spot_usd_hour=0.922,
)
TPU7X = Chip(
    name="tpu7x",
    peak_flops=1153.5e12,  # 2307 of a chip
    cycles_s=2.2e9,
    hbm_bytes=int(94.75 * GIB),  # of 192 of a chip
    hbm_bytes_s=3690e9,  # 7380 of a chip
    link_bytes_s=100e9,  # 1200 GB/s over 6 links, which both devices of a chip share
    host_bytes_s=8e9,
    dimensions=3,
    cores=2,
    most_chips=9216,
    list_usd_hour=None,
    spot_usd_hour=None,
    devices=2,
)

PREFIXES = {"v5litepod": V5E, "v6e": V6E, "v5p": V5P, "v4": V4, "tpu7x": TPU7X}
"""Chips by the prefix of Cloud TPU accelerator types."""

GRIDS: dict[int, dict[int, tuple[int, ...]]] = {
    2: {1: (1, 1), 4: (2, 2), 8: (2, 4), 16: (4, 4), 32: (4, 8), 64: (8, 8), 128: (8, 16), 256: (16, 16)},
    3: {4: (2, 2, 1), 8: (2, 2, 2), 16: (2, 2, 4), 32: (2, 4, 4)},
}
"""Grids by the number of dimensions and of chips; larger slices in three dimensions are whole cubes of 4x4x4."""
CUBE = 64


@dataclass(frozen=True)
class Slice:
    """A pod slice: `chips` chips as jax sees them, `chips_per_host` on each VM, `grid` their network's shape.

    On TPU7x jax sees two devices for every chip of the grid.
    """

    chip: Chip
    chips: int
    chips_per_host: int
    grid: tuple[int, ...]

    @property
    def hosts(self) -> int:
        return self.chips // self.chips_per_host

    @property
    def topology(self) -> str:
        """Name that the compiler has for the slice, such as v5e:8x8."""
        return f"{self.chip.name}:{'x'.join(map(str, self.grid))}"

    @property
    def network_bytes_s(self) -> float:
        """Rate at which a chip receives a gather along one side of the grid: one direction of a link, both where every
        side closes to a ring.
        """
        closes = all(side % (16 if self.chip.dimensions == 2 else 4) == 0 for side in self.grid)
        return self.chip.link_bytes_s * (1.0 if closes else 0.5)


def read_accelerator_type(name: str) -> Slice:
    """Returns the slice that Cloud TPU sells as `name`, such as v5litepod-64, v6e-8 or tpu7x-32.

    Raises:
        JobError: not such a name, or a size that is not sold; names the nearest ones that are.
    """
    match = re.fullmatch(r"(\w+)-(\d+)", name)
    if not match or match[1] not in PREFIXES:
        known = ", ".join(f"{prefix}-N" for prefix in PREFIXES)
        near = "".join(f"did you mean {' or '.join(names)}? " for names in [near_names(name)] if names)
        raise JobError(f"pod.accelerator_type={name} is not known to the compiler here; {near}use one of {known}")
    chip = PREFIXES[match[1]]
    chips, rest = divmod(int(match[2]), chip.cores)
    shape = None if rest else grid(chips, chip)
    if shape is None:
        sizes = sorted(known_sizes(chip), key=lambda size: abs(size - int(match[2]) / chip.cores))[:2]
        near = " or ".join(f"{match[1]}-{size * chip.cores}" for size in sorted(sizes))
        raise JobError(f"pod.accelerator_type={name}: there is no slice of that size; the nearest are {near}")
    # Slices of v5e and v6e of up to 8 chips are one VM; larger ones, and all of the others, have 4 chips on each VM.
    on_host = chips if chip.dimensions == 2 and chips <= 8 else 4
    return Slice(chip, chips * chip.devices, on_host * chip.devices, shape)


def near_names(name: str) -> list[str]:
    """Returns the names most like `name`, the likeliest first; v5e-64, as many write it, is like v5litepod-64."""
    sold = {}
    for prefix, chip in PREFIXES.items():
        for chips in known_sizes(chip):
            sold |= dict.fromkeys((f"{prefix}-{chips * chip.cores}", f"{chip.name}-{chips * chip.cores}"), prefix)
    close = difflib.get_close_matches(name.lower(), sold, 2, 0.75)
    return list(dict.fromkeys(f"{sold[like]}-{like.partition('-')[2]}" for like in close))


def known_sizes(chip: Chip) -> list[int]:
    """Returns the numbers of chips that slices are sold with."""
    cubes = range(CUBE, chip.most_chips + 1, CUBE) if chip.dimensions == 3 else []
    return [*GRIDS[chip.dimensions], *cubes]


def grid(chips: int, chip: Chip) -> tuple[int, ...] | None:
    """Returns the shape of a slice's network, of whole cubes the squarest; None where no such slice is sold."""
    if chips in GRIDS[chip.dimensions] or chip.dimensions == 2:
        return GRIDS[chip.dimensions].get(chips)
    cubes, rest = divmod(chips, CUBE)
    if rest or not 1 <= cubes <= chip.most_chips // CUBE:
        return None
    shapes = [
        (a, b, cubes // a // b)
        for a in range(1, math.isqrt(cubes) + 1)
        for b in range(a, math.isqrt(cubes // a) + 1)
        if cubes % (a * b) == 0
    ]
    return tuple(4 * side for side in min(shapes, key=sum))
