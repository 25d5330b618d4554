"""Seconds of a program's attention kernels, of which the compiler's text states none."""

import re
from collections import Counter

from pod_job.config.generate import Mode, cache_slots, prefill_length, prefix_slots
from pod_job.config.schema import JobConfig, Sharding
from pod_job.formats.safetensors import DTYPE_OF
from pod_job.models.arch import Arch
from pod_job.models.attention import LANES, block_size, pairs_computed
from pod_job.models.cache_kernel import block_slots
from pod_job.preflight.compiled_text import Operation
from pod_job.preflight.kernel_bundles import CacheKernelShape, KernelShape, cache_kernel_bundles, kernel_bundles
from pod_job.preflight.model_kernels import HEAD_KERNEL
from pod_job.preflight.planned_job import PlannedJob

KERNEL = re.compile(r"^splash_")
CACHE_KERNEL = re.compile(r"^cached_attention")


def kernel_seconds(operations: list[Operation], job: PlannedJob, layers: int) -> tuple[float, str]:
    """Returns the seconds of a step's attention kernels on one chip, and where they are from: `bundles` or `FLOPs`.

    Counted from the compiler's own instructions where it writes them. Otherwise FLOPs of their blocks at the matrix
    units' rate: a head narrower than LANES leaves part of a 128 x 128 matrix unit idle, in both products: H/128 of
    peak.
    """
    if any(CACHE_KERNEL.match(op.name) for op in operations):
        return cache_kernel_seconds(job)
    if not any(KERNEL.match(op.name) for op in operations):
        return 0.0, ""
    config, arch, chip, split = job.config, job.arch, job.pod.chip, heads_split(job.config, job.arch)
    S, rows = config.extract.seq_len, config.extract.rows_per_device
    if config.mode is Mode.generate:
        S, rows = prefill_length(rows, S), 1
    heads, seconds, origin = arch.heads // split * rows, 0.0, "bundles"
    apart = any(HEAD_KERNEL.match(op.name) for op in operations)
    windows = Counter(layer.window for layer in arch.attention[:layers] if not layer.delta)
    for window, count in windows.items():
        block, pairs = block_size(S, window, apart), pairs_computed(S, window, apart)
        assert block is not None
        ahead = S // block * prefix_slots(job.prefix) / block  # pairs of blocks of queries and of a shared prefix
        group = arch.heads // arch.kv_heads
        assert config.pod.accelerator_type is not None  # a preflight has one
        shape = KernelShape(config.pod.accelerator_type, S, group, arch.head_dim, window, arch.attn_softcap, apart)
        bundles = kernel_bundles(shape)
        if bundles is None:
            origin, rate = "FLOPs", chip.peak_flops * min(1.0, arch.head_dim / LANES)
            seconds += count * heads * 4 * (pairs + ahead) * block * block * arch.head_dim / rate
        else:
            cycles = bundles.cycles(pairs, S // block) + ahead * (bundles.pair + bundles.turn)
            seconds += count * heads * cycles / chip.cycles_s
    return seconds, origin


def cache_kernel_seconds(job: PlannedJob) -> tuple[float, str]:
    """Returns the seconds of a token's kernels on one chip whose rows are full, and where they are from.

    A block of slots takes its instructions' time, or its bytes' at the memory's rate where that is longer.
    """
    config, arch, chip = job.config, job.arch, job.pod.chip
    slots = cache_slots(config.extract.seq_len, config.generate.max_new_tokens)
    kv_heads, dtype = arch.kv_heads // heads_split(config, arch), DTYPE_OF[config.model.dtype.value]
    T = block_slots("tpu", slots, arch.kv_heads * arch.head_dim, dtype)
    assert T is not None  # or the kernel would not be in the program
    assert config.pod.accelerator_type is not None  # a preflight has one
    group = arch.heads // arch.kv_heads
    shape = CacheKernelShape(config.pod.accelerator_type, slots, kv_heads, group, arch.head_dim, arch.attn_softcap)
    bundles, read_s = cache_kernel_bundles(shape), 2 * kv_heads * arch.head_dim * T * 2 / chip.hbm_bytes_s
    block_s = read_s if bundles is None else max(read_s, bundles.block / chip.cycles_s)
    row_s = 0.0 if bundles is None else bundles.row / chip.cycles_s
    windows = [slots if layer.window is None else min(slots, layer.window) for layer in arch.attention]
    blocks = sum(min(slots // T, -(-window // T) + 1) for window in windows)
    seconds = config.extract.rows_per_device * (blocks * block_s + len(windows) * row_s)
    return seconds, "bytes" if bundles is None else "bundles"


def heads_split(config: JobConfig, arch: Arch) -> int:
    """Returns how many devices share the heads of a row."""
    split = config.mesh.model if config.sharding is Sharding.tensor else 1
    return split if arch.kv_heads % split == 0 else 1
