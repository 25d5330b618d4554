"""Cycles of the attention kernel, from the instructions that the TPU compiler writes for it.

The compiler states no cost of custom kernels, but libtpu can write out the bundles of instructions it makes, one a
cycle. The kernel is compiled alone, for two rows and two key/value heads, in a process of its own: the flags are read
when libtpu is loaded. It loops over (block of queries, block of keys); what it does in a turn stands in predicated
regions, of which the largest computes a visible pair of blocks, and the other large ones begin and end a block of
queries. Waiting for memory is not in the bundles.
"""

import functools
import logging
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from pathlib import Path

from pod_job import environment

log = logging.getLogger("pod_job")

BUNDLE = re.compile(r"^\s*(0x[0-9a-f]+|0)\s+(LB|LH|LE|PB|PF|CT)?\s*:")
BRANCH = re.compile(r"sbr\.rel .*?target = \$region(\d+)")
REGION_END = re.compile(r"empty region (\d+)\b")
SMALL_REGION = 128
"""Bundles; smaller regions start copies, in each turn or nearly so."""
TIMEOUT_S = 300


@dataclass(frozen=True)
class KernelShape:
    """One row of S positions: `group` query heads of size `head` share a key/value head; window and softcap or None."""

    accelerator_type: str
    S: int
    group: int
    head: int
    window: int | None
    softcap: float | None


@dataclass(frozen=True)
class Bundles:
    """Bundles of a turn of the kernel's loop: always, for a visible pair of blocks, and for each block of queries."""

    turn: int
    pair: int
    queries: int

    def cycles(self, pairs: int, blocks: int) -> int:
        """Returns the cycles of one query head of one row, whose S positions make so many blocks."""
        return pairs * self.pair + blocks * blocks * self.turn + blocks * self.queries


def read_bundles(text: str) -> Bundles:
    """Returns the counts of a kernel's final bundles. Raises ValueError where the text is no such loop."""
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
    innermost = leaves(regions.values())
    pair, *others = sorted((stop - start for start, stop in innermost), reverse=True)
    queries = sum(size for size in others if size >= SMALL_REGION)
    return Bundles(end - begin - pair - queries, pair, queries)


def leaves(regions: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Returns the regions that hold no other."""
    spans = list(regions)
    return [a for a in spans if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in spans)]


@functools.cache
def kernel_bundles(shape: KernelShape) -> Bundles | None:
    """Compiles the kernel and returns its bundles; None where libtpu does not write them, or as other text."""
    with tempfile.TemporaryDirectory() as folder:
        flags = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
        env = {**os.environ, **environment.COMPILE_ONLY, "LIBTPU_INIT_ARGS": flags}
        arguments = ["" if value is None else str(value) for value in astuple(shape)]
        command = [sys.executable, "-m", "pod_job.preflight.kernel_bundles", *arguments]
        try:
            subprocess.run(command, env=env, capture_output=True, check=True, timeout=TIMEOUT_S)
            (file,) = Path(folder).glob("*splash*-final_bundles.txt")
            return read_bundles(file.read_text())
        except (subprocess.SubprocessError, OSError, ValueError) as error:
            log.info("the attention kernel's instructions cannot be read (%s); its FLOPs are counted", error)
            return None


def compile_kernel(shape: KernelShape) -> None:
    """Compiles the kernel for two rows and two key/value heads; libtpu writes what its flags ask for."""
    import jax
    import jax.numpy as jnp

    from pod_job.models.attention import attend_splash
    from pod_job.models.attention_settings import AttentionSettings, Heads
    from pod_job.preflight.pod_devices import pod_devices
    from pod_job.preflight.tpu_facts import read_accelerator_type

    sharding = jax.sharding.SingleDeviceSharding(pod_devices(read_accelerator_type(shape.accelerator_type))[0])

    def argument(dtype: type, *sizes: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((2, shape.S, *sizes), dtype, sharding=sharding)

    q, k = (argument(jnp.bfloat16, heads, shape.head) for heads in (2 * shape.group, 2))
    settings = AttentionSettings(shape.head**-0.5, shape.softcap, shape.window)
    heads = Heads(q, k, k, None)  # type: ignore[arg-type]
    jax.jit(lambda heads, segments: attend_splash(heads, segments, settings)).lower(heads, argument(jnp.int32)).compile(
        {"xla_tpu_scoped_vmem_limit_kib": "32768"}
    )


def main(accelerator_type: str, S: str, group: str, head: str, window: str, softcap: str) -> None:
    """Compiles the kernel of these sizes."""
    reach, cap = int(window) if window else None, float(softcap) if softcap else None
    compile_kernel(KernelShape(accelerator_type, int(S), int(group), int(head), reach, cap))


if __name__ == "__main__":
    main(*sys.argv[1:])
