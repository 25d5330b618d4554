"""Cycles of the attention kernels, from the instructions that the TPU compiler writes for them.

The compiler states no cost of custom kernels, but libtpu can write out the bundles of instructions it makes, one a
cycle. A kernel is compiled alone, in a process of its own: the flags are read when libtpu is loaded. What it does in a
turn of its loop stands partly in predicated regions. Waiting for memory is not in the bundles.

That of prefill loops over (block of queries, block of keys): the largest region computes a visible pair of blocks, and
the other large ones begin and end a block of queries. That of decode loops over blocks of slots: large regions begin
and end a row.
"""

import functools
import logging
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TypeVar

from pod_job import environment

log = logging.getLogger("pod_job")
T = TypeVar("T")

BUNDLE = re.compile(r"^\s*(0x[0-9a-f]+|0)\s+(LB|LH|LE|PB|PF|CT)?\s*:")
BRANCH = re.compile(r"sbr\.rel .*?target = \$region(\d+)")
REGION_END = re.compile(r"empty region (\d+)\b")
SMALL_REGION = 128
"""Bundles; smaller regions start copies, in each turn or nearly so."""
TIMEOUT_S = 1800
"""Wall time that a kernel's compilation may take, for five CPU seconds: 300 were too few on a busy machine."""


@dataclass(frozen=True)
class KernelShape:
    """One row of S positions: `group` query heads of size `head` share a key/value head; window and softcap or None."""

    accelerator_type: str
    S: int
    group: int
    head: int
    window: int | None
    softcap: float | None
    heads_apart: bool = False


@dataclass(frozen=True)
class Bundles:
    """Bundles of a turn of the kernel's loop: always, for a visible pair of blocks, and for each block of queries."""

    turn: int
    pair: int
    queries: int

    def cycles(self, pairs: int, blocks: int) -> int:
        """Returns the cycles of one query head of one row, whose S positions make so many blocks."""
        return pairs * self.pair + blocks * blocks * self.turn + blocks * self.queries


@dataclass(frozen=True)
class CacheKernelShape:
    """One row of a cache, `kv_heads` key/value heads of size `head` with `group` query heads each; softcap or None."""

    accelerator_type: str
    slots: int
    kv_heads: int
    group: int
    head: int
    softcap: float | None


@dataclass(frozen=True)
class CacheBundles:
    """Bundles of a turn of decode's kernel, which is a block of slots, and beside them of each row."""

    block: int
    row: int


def read_bundles(text: str) -> Bundles:
    """Returns the counts of prefill's kernel's final bundles. Raises ValueError where the text is no such loop."""
    turn, regions = read_loop(text)
    pair, *others = sorted(regions, reverse=True)
    queries = sum(size for size in others if size >= SMALL_REGION)
    return Bundles(turn - pair - queries, pair, queries)


def read_cache_bundles(text: str) -> CacheBundles:
    """Returns the counts of decode's kernel's final bundles. Raises ValueError where the text is no such loop."""
    turn, regions = read_loop(text)
    row = sum(size for size in regions if size >= SMALL_REGION)
    return CacheBundles(turn - row, row)


def read_loop(text: str) -> tuple[int, list[int]]:
    """Returns the bundles of a turn of a kernel's loop with all regions, and those of each region that holds no other.

    Raises:
        ValueError: there is no loop, or none with regions.
    """
    starts: dict[str, int] = {}
    regions: dict[str, tuple[int, int]] = {}
    begin = end = None
    for line in text.splitlines():
        bundle = BUNDLE.match(line)
        if bundle is None:
            continue
        address = int(bundle[1], 16)
        if bundle[2] == "LB" and begin is None:
            begin = address
        if bundle[2] == "PF":
            for number in REGION_END.findall(line):
                if number in starts:
                    regions[number] = starts.pop(number), address
        if branch := BRANCH.search(line):
            starts[branch[1]] = address
            end = address
    if begin is None or end is None or not regions:
        raise ValueError("no loop with predicated regions")
    return end - begin, [stop - start for start, stop in leaves(regions.values())]


def leaves(regions: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Returns the regions that hold no other."""
    spans = list(regions)
    return [a for a in spans if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in spans)]


@functools.cache
def kernel_bundles(shape: KernelShape) -> Bundles | None:
    """Compiles prefill's kernel and returns its bundles; None where libtpu does not write them, or as other text."""
    return read_dumped(shape, "splash", read_bundles)


@functools.cache
def cache_kernel_bundles(shape: CacheKernelShape) -> CacheBundles | None:
    """Compiles decode's kernel and returns its bundles; None where libtpu does not write them, or as other text."""
    return read_dumped(shape, "cached_attention", read_cache_bundles)


def read_dumped(shape: KernelShape | CacheKernelShape, name: str, read: Callable[[str], T]) -> T | None:
    """Returns what `read` makes of the final bundles of the kernel of this name; None where it cannot."""
    with tempfile.TemporaryDirectory() as folder:
        flags = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
        env = {**os.environ, **environment.COMPILE_ONLY, "LIBTPU_INIT_ARGS": flags}
        arguments = [type(shape).__name__, *("" if value is None else str(value) for value in astuple(shape))]
        command = [sys.executable, "-m", "pod_job.preflight.compile_kernel", *arguments]
        try:
            subprocess.run(command, env=env, capture_output=True, check=True, timeout=TIMEOUT_S)
            (file,) = Path(folder).glob(f"*{name}*-final_bundles.txt")
            return read(file.read_text())
        except (subprocess.SubprocessError, OSError, ValueError) as error:
            log.warning(
                "the instructions of kernel %s cannot be read (%s); its FLOPs and bytes are counted", name, error
            )
            return None
