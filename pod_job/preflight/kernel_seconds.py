"""Seconds of a program's attention kernels, of which the compiler's text states none."""

import re
from collections import Counter

from pod_job.config.generate import Mode, prefill_rows
from pod_job.config.schema import Sharding
from pod_job.models.attention import LANES, block_size, pairs_computed
from pod_job.preflight.compiled_text import Operation
from pod_job.preflight.kernel_bundles import KernelShape, kernel_bundles
from pod_job.preflight.planned_job import PlannedJob

KERNEL = re.compile(r"^splash_")


def kernel_seconds(operations: list[Operation], job: PlannedJob, layers: int) -> tuple[float, str]:
    """Returns the seconds of a step's attention kernels on one chip, and where they are from: `bundles` or `FLOPs`.

    Counted from the compiler's own instructions where it writes them. Otherwise FLOPs of their blocks at the matrix
    units' rate: a head narrower than LANES leaves part of a 128 x 128 matrix unit idle, in both products: H/128 of
    peak.
    """
    if not any(KERNEL.match(op.name) for op in operations):
        return 0.0, ""
    config, arch, chip = job.config, job.arch, job.pod.chip
    split = config.mesh.model if config.sharding is Sharding.tensor and arch.kv_heads % config.mesh.model == 0 else 1
    S, rows = config.extract.seq_len, config.extract.rows_per_device
    rows = rows if config.mode is not Mode.generate else prefill_rows(rows, S)
    heads, seconds, origin = arch.heads // split * rows, 0.0, "bundles"
    windows = Counter(layer.window for layer in arch.attention[:layers] if not layer.delta)
    for window, count in windows.items():
        block, pairs = block_size(S, window), pairs_computed(S, window)
        assert block is not None
        group = arch.heads // arch.kv_heads
        assert config.pod.accelerator_type is not None  # a preflight has one
        shape = KernelShape(config.pod.accelerator_type, S, group, arch.head_dim, window, arch.attn_softcap)
        bundles = kernel_bundles(shape)
        if bundles is None:
            origin, rate = "FLOPs", chip.peak_flops * min(1.0, arch.head_dim / LANES)
            seconds += count * heads * 4 * pairs * block * block * arch.head_dim / rate
        else:
            seconds += count * heads * bundles.cycles(pairs, S // block) / chip.cycles_s
    return seconds, origin
